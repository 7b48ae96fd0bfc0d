using System.Text.Json;

while (Console.ReadLine() is { } line) {
    var request = JsonDocument.Parse(line);
    var slotName = request.RootElement.GetProperty("slot_name").GetString();

    object result = slotName switch {
        "dotnet.greet" => new { message = "Hello from .NET NativeAOT!" },
        _ => new { error = "Unknown slot" }
    };

    Console.WriteLine(JsonSerializer.Serialize(new {
        success = true,
        data = result
    }));
}
