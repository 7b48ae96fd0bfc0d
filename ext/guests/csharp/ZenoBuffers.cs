// The host's buffers, for ZenoGuest.cs: memory that calls only refer to, so that nobody copies it.
//
// Copy this file beside ZenoGuest.cs, whose link has these methods then. Elsewhere than on 64-bit
// Linux they find nothing.

#nullable enable

using System;
using System.Collections.Generic;
using System.Globalization;
using System.Runtime.InteropServices;

namespace Zeno;

public sealed partial class Link {
    private readonly Buffers _buffers = new(Environment.GetEnvironmentVariable("ZENO_BUFFERS"));

    /// <summary>Whether the host may send buffers of its own: then "buffers" belongs among the
    /// features.</summary>
    public bool OffersBuffers => OffersArena && _buffers.AreOffered;

    /// <summary>Find the bytes that a request means by {"$bytes":[offset,nbytes,id]}; false where
    /// there are none. They may be read and written until that request is answered, and be answered
    /// with in the same words.</summary>
    public bool BufferBytes(ulong id, long offset, long nbytes, out Span<byte> bytes) {
        bytes = default;
        return _buffers.TryFind(id, out var buffer) && buffer is not null
            && buffer.TrySlice(offset, nbytes, out bytes);
    }

    /// <summary>Let go of a buffer: the host says so by
    /// {"type":"forget_buffers","buffers":[id,...]}.</summary>
    public void ForgetBuffer(ulong id) => _buffers.Forget(id);

    partial void DisposeBuffers() => _buffers.Dispose();
}

/// <summary>What the host has given us, and the socket through which it gives more.</summary>
internal sealed class Buffers : IDisposable {
    // Null for one that could not be mapped, so that nobody waits for it again.
    private readonly Dictionary<ulong, Mapping?> _given = new();
    private int _socket = -1;

    public Buffers(string? announced) {
        if (OperatingSystem.IsLinux() && Environment.Is64BitProcess && BitConverter.IsLittleEndian
            && int.TryParse(announced, NumberStyles.None, CultureInfo.InvariantCulture, out var fd))
            _socket = fd;
    }

    public bool AreOffered => _socket >= 0;

    /// <summary>Find a buffer, which may still be on its way.</summary>
    public bool TryFind(ulong id, out Mapping? buffer) {
        while (!_given.TryGetValue(id, out buffer)) {
            if (!Take())
                return false;
        }
        return true;
    }

    public void Forget(ulong id) {
        if (TryFind(id, out var buffer)) // it may not have been taken yet
            buffer?.Dispose();
        _given.Remove(id);
    }

    /// <summary>Let go of all of them, and take no more.</summary>
    public void Dispose() {
        foreach (var buffer in _given.Values)
            buffer?.Dispose();
        _given.Clear();
        _socket = -1;
    }

    /// <summary>Take what the host has sent next; false where nothing has come in time.</summary>
    private bool Take() {
        if (_socket < 0)
            return false;
        Span<ulong> about = stackalloc ulong[2]; // its id and its size
        var nbytes = BufferSocket.Receive(_socket, about, out var fd);
        if (fd >= 0) {
            if (nbytes == about.Length * sizeof(ulong))
                _given[about[0]] = Map(fd, about[1]);
            BufferSocket.Close(fd);
        }
        return nbytes > 0;
    }

    // One without bytes is made of one byte, as nothing can be mapped without any.
    private static Mapping? Map(int fd, ulong size) =>
        size > long.MaxValue ? null : Mapping.Of(fd, Math.Max(1, (long)size));
}

/// <summary>What is asked of the system, as Linux has it.</summary>
internal static unsafe class BufferSocket {
    // How long a buffer may be on its way; the host sends it before it refers to it.
    private const long Milliseconds = 1000;
    private const short Readable = 1;
    private const int AtOnce = 0x40, CloseOnExec = 0x40000000, Files = 1, Interrupted = 4;
    // Room for one descriptor, without what pads it: a second one would fit there and stay open.
    private static readonly nuint ControlSize = (nuint)(sizeof(nuint) + 3 * sizeof(int));

    /// <summary>Wait for a message; returns how many bytes it has, 0 or less where none came in
    /// time. The descriptor that came with it, or -1, is the caller's to close.</summary>
    public static nint Receive(int socket, Span<ulong> numbers, out int fd) {
        fd = -1;
        if (!IsReady(socket))
            return 0;
        nint nbytes;
        var control = new Control();
        fixed (ulong* at = numbers) {
            var part = new Part { Base = at, Size = (nuint)numbers.Length * sizeof(ulong) };
            var message = new Message {
                Parts = &part,
                PartCount = 1,
                Control = &control,
                ControlSize = ControlSize,
            };
            nbytes = recvmsg(socket, &message, AtOnce | CloseOnExec);
            if (message.ControlSize >= ControlSize && control.Kind == Files)
                fd = control.Descriptor;
        }
        return nbytes;
    }

    public static void Close(int fd) => close(fd);

    /// <summary>Wait until something can be received; whether it can.</summary>
    private static bool IsReady(int socket) {
        var until = Environment.TickCount64 + Milliseconds;
        while (true) {
            var left = (int)Math.Max(0, until - Environment.TickCount64);
            var waits = new Waits { Descriptor = socket, Events = Readable };
            var count = poll(&waits, 1, left);
            if (count >= 0 || left == 0 || Marshal.GetLastPInvokeError() != Interrupted)
                return count > 0;
        }
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Waits {
        public int Descriptor;
        public short Events, Happened;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Part {
        public void* Base;
        public nuint Size;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Control {
        public nuint Size;
        public int Level, Kind, Descriptor;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Message {
        public void* Name;
        public uint NameSize;
        public Part* Parts;
        public nuint PartCount;
        public Control* Control;
        public nuint ControlSize;
        public int Flags;
    }

    [DllImport("libc", SetLastError = true)]
    private static extern int poll(Waits* waits, nuint count, int milliseconds);

    [DllImport("libc", SetLastError = true)]
    private static extern nint recvmsg(int socket, Message* message, int flags);

    [DllImport("libc")]
    private static extern int close(int fd);
}
