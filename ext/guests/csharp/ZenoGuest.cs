// How a sidecar in C# hears its host and answers: lines, or shared memory.
//
// Copy this file into a project of .NET 8 or newer that has
// <AllowUnsafeBlocks>true</AllowUnsafeBlocks>. It needs no package. Shared memory is for 64-bit
// Linux; elsewhere, messages go in lines. ZenoBuffers.cs beside it adds the host's buffers.
//
//     using var link = Zeno.Link.Open(); // before anything is read or printed
//     while (link.Receive(out var message)) {
//         // decode the message, which is one JSON object, and answer it
//         link.Send(answer);
//         // after the answer to plugin_init that had "shm" among its features:
//         link.UseRing();
//     }
//
// The messages are in docs/protocol.md, the layout of the memory is in zeno_shm.h and zeno_ring.h,
// of which this does the same as zeno_guest.h. One thread uses a link at a time. What is printed to
// stdout is logged by the host as ever.

#nullable enable

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Runtime.InteropServices;
using System.Threading;

namespace Zeno;

/// <summary>A sidecar's end of the way to its host.</summary>
public sealed partial class Link : IDisposable {
    private readonly Segment? _segment;
    private readonly Mapping? _hostArena;
    private readonly Patience _patience = new();
    private RingReader? _reader;
    private RingWriter? _writer;
    private byte[] _buffer = new byte[65536]; // what was received
    private int _start, _end;

    private Link() {
        _segment = Segment.Attach(Environment.GetEnvironmentVariable("ZENO_SHM"));
        _hostArena = Mapping.Attach(Environment.GetEnvironmentVariable("ZENO_ARENA"));
    }

    /// <summary>Take up what the host offers in ZENO_SHM and ZENO_ARENA; lines where that is
    /// nothing.</summary>
    public static Link Open() => new();

    /// <summary>Whether the host shares memory with this process: then "shm" may stand among the
    /// features.</summary>
    public bool OffersRing => _segment is not null;

    /// <summary>Whether bytes may go through shared memory: then "arena" belongs among the
    /// features.</summary>
    public bool OffersArena => _segment is not null && _hostArena is not null;

    /// <summary>Whether messages go through shared memory.</summary>
    public bool UsesRing => _reader is not null;

    /// <summary>Send and receive through shared memory from now on. Call it right after the answer
    /// to plugin_init that had "shm" among its features; later calls do nothing.</summary>
    public void UseRing() {
        if (UsesRing || _segment is null)
            return;
        var reader = RingReader.Open(_segment);
        _writer = RingWriter.Open(_segment);
        if (_writer is null)
            return;
        _reader = reader;
        _start = _end = 0; // a line more would be one that nobody sends
    }

    /// <summary>Wait for the next message; false once there will be no more. It is good until the
    /// next call.</summary>
    public bool Receive(out ReadOnlyMemory<byte> message) =>
        _reader is null ? ReceiveLine(out message) : ReceiveRecord(_reader, out message);

    /// <summary>Send one message, without a line end and without one inside. Waits while the host
    /// reads what was sent before. An IOException means that the host has gone.</summary>
    public void Send(ReadOnlySpan<byte> message) {
        if (_writer is not null) {
            SendRecord(_writer, message);
            return;
        }
        Posix.WriteAll(message);
        Posix.WriteAll(Posix.LineEnd);
    }

    /// <summary>Find the bytes that a request means by {"$bytes":[offset,nbytes]}; false where
    /// there are none. They may be read and written until that request is answered.</summary>
    public bool Bytes(long offset, long nbytes, out Span<byte> bytes) {
        bytes = default;
        return _hostArena is not null && _hostArena.TrySlice(offset, nbytes, out bytes);
    }

    /// <summary>Take room for bytes to answer with, whose values are undetermined. Write them, and
    /// send {"$bytes":[offset,nbytes]}, with "binary":true beside "data". False where there is no
    /// room: send base64 then.</summary>
    public bool NewBytes(long nbytes, out long offset, out Span<byte> bytes) {
        offset = 0;
        bytes = default;
        return OffersArena && _segment!.Take(nbytes, out offset, out bytes);
    }

    /// <summary>Take bytes back that were not sent.</summary>
    public void DropBytes(long offset) => _segment?.GiveBack(offset);

    /// <summary>Let go of the memory; spans of it must not be used any more.</summary>
    public void Dispose() {
        _reader = null;
        _writer = null;
        _segment?.Memory.Dispose();
        _hostArena?.Dispose();
        DisposeBuffers();
    }

    partial void DisposeBuffers();

    private bool ReceiveLine(out ReadOnlyMemory<byte> message) {
        message = default;
        var scanned = _start;
        while (true) {
            var found = _buffer.AsSpan(scanned, _end - scanned).IndexOf((byte)'\n');
            if (found >= 0) {
                var begin = _start;
                var end = scanned + found;
                _start = scanned = end + 1;
                if (end == begin)
                    continue;
                message = _buffer.AsMemory(begin, end - begin);
                return true;
            }
            MakeRoom(32768);
            scanned = _end;
            var count = Posix.Read(_buffer.AsSpan(_end));
            if (count <= 0)
                return false;
            _end += count;
        }
    }

    private bool ReceiveRecord(RingReader reader, out ReadOnlyMemory<byte> message) {
        message = default;
        _start = _end = 0;
        while (true) {
            if (!reader.Next(out var nbytes, out var flags))
                return false;
            if (nbytes >= 0) {
                MakeRoom(nbytes);
                reader.Take(_buffer.AsSpan(_end, nbytes));
                _end += nbytes;
                if (reader.IsDrained && reader.MustWakeWriter())
                    Posix.Write(Posix.LineEnd); // if the host has gone, the next sleep ends at once
                if ((flags & RingReader.More) == 0) {
                    message = _buffer.AsMemory(0, _end);
                    return true;
                }
            } else if (!_patience.Spin(reader) && reader.MaySleep()) {
                var woken = Posix.Sleep();
                reader.Awake();
                if (!woken && !reader.IsReady)
                    return false;
            }
        }
    }

    private static void SendRecord(RingWriter writer, ReadOnlySpan<byte> message) {
        var rest = message;
        while (true) {
            var pushed = writer.PushSome(rest);
            if (writer.MustWakeReader())
                Posix.WriteAll(Posix.LineEnd);
            if (pushed == rest.Length)
                return;
            if (pushed >= 0) {
                rest = rest[pushed..];
                continue;
            }
            var wanted = writer.Wanted(rest.Length);
            if (!writer.SpinForRoom(wanted) && writer.MaySleep(wanted) && !Posix.Sleep())
                throw new IOException("the host has gone");
        }
    }

    /// <summary>Have room for this much more behind what is in the buffer.</summary>
    private void MakeRoom(int nbytes) {
        if (_buffer.Length - _end >= nbytes)
            return;
        var length = _end - _start;
        var target = _buffer;
        if (_buffer.Length - length < nbytes) {
            var capacity = Math.Max((long)_buffer.Length * 2, (long)length + nbytes);
            target = new byte[Math.Min(capacity, Array.MaxLength)]; // beyond that the copy throws
        }
        _buffer.AsSpan(_start, length).CopyTo(target);
        _buffer = target;
        _start = 0;
        _end = length;
    }
}

/// <summary>How long it is worth while to wait awake.</summary>
internal sealed class Patience {
    private const int Pauses = 60;
    private const int Misses = 3;
    internal static readonly long SpinTicks = Stopwatch.Frequency * 30 / 1_000_000;
    // What giving up the processor takes where others want it.
    private static readonly long BusyTicks = Stopwatch.Frequency * 8 / 1_000_000;
    private int _misses, _skip;

    /// <summary>Wait awake for a moment; whether something came. Where that is in vain several
    /// times in a row, as on a busy machine or with a host that calls seldom, it is left for longer
    /// and longer.</summary>
    public bool Spin(RingReader reader) {
        if (_skip > 0) {
            _skip--;
            return false;
        }
        for (var turn = 0; turn < Pauses; turn++) {
            if (reader.IsReady) {
                _misses = 0;
                return true;
            }
            Thread.SpinWait(1);
        }
        var now = Stopwatch.GetTimestamp();
        var until = now + SpinTicks;
        long before;
        do {
            Thread.Yield();
            if (reader.IsReady) {
                _misses = 0;
                return true;
            }
            before = now;
            now = Stopwatch.GetTimestamp();
        } while (now < until && now - before < BusyTicks);
        _misses = Math.Min(_misses + 1, 6);
        if (_misses >= Misses)
            _skip = 1 << _misses;
        return false;
    }
}

/// <summary>What both ends of a ring have in common. Positions only grow; each is at its remainder
/// by the ring's size.</summary>
internal abstract class RingEnd {
    protected const int Head = 0, ReaderSleeps = 8, Tail = 128, WriterSleeps = 136; // in Control
    protected const int HeaderSize = 8;
    protected readonly Mapping Memory;
    protected readonly long Control, Data, Size;

    protected RingEnd(Segment segment, bool toHost) {
        Memory = segment.Memory;
        Size = segment.RingSize;
        Control = toHost ? 512 : 256;
        Data = Segment.Rings + (toHost ? Size : 0);
    }

    /// <summary>Bytes of the ring that a record of this many takes.</summary>
    protected static long SpanOf(long nbytes) => HeaderSize + ((nbytes + 7) & ~7L);

    /// <summary>Whether the other side sleeps, whom we shall wake then.</summary>
    protected bool TakeFlag(int flag) {
        Interlocked.MemoryBarrier();
        ref var sleeps = ref Memory.Int32(Control + flag);
        return Volatile.Read(ref sleeps) != 0 && Interlocked.Exchange(ref sleeps, 0) != 0;
    }

    protected static IOException Corrupt() => new("the shared memory holds what cannot be");
}

/// <summary>The end of a ring that writes.</summary>
internal sealed class RingWriter : RingEnd {
    private long _head, _tail; // the latter as last seen

    private RingWriter(Segment segment) : base(segment, toHost: true) {
        _head = Volatile.Read(ref Memory.Int64(Control + Head));
        _tail = Volatile.Read(ref Memory.Int64(Control + Tail));
    }

    public static RingWriter? Open(Segment segment) {
        var writer = new RingWriter(segment);
        return writer.IsSound(writer._tail) && (writer._head & 7) == 0 ? writer : null;
    }

    /// <summary>How much has to be free for <c>PushSome</c> of this many bytes to go on.</summary>
    public long Wanted(int nbytes) => Math.Min(SpanOf(nbytes), Size / 4);

    /// <summary>Write as much of a message as there is room for; how many bytes that were, -1 where
    /// the ring is full.</summary>
    public int PushSome(ReadOnlySpan<byte> bytes) {
        var needed = SpanOf(bytes.Length);
        var room = Room(Math.Min(needed, Size));
        if (room >= needed) {
            Put(bytes, 0);
            return bytes.Length;
        }
        if (room < Wanted(bytes.Length))
            return -1;
        // Still a multiple of 8, and below the length, for the whole did not fit.
        var count = (int)(room - HeaderSize);
        Put(bytes[..count], RingReader.More);
        return count;
    }

    /// <summary>After a record: whether the reader has to be woken. It does not sleep for the ring
    /// then.</summary>
    public bool MustWakeReader() => TakeFlag(ReaderSleeps);

    /// <summary>Wait awake for a moment until the host has read; whether there is room.</summary>
    public bool SpinForRoom(long wanted) {
        var until = Stopwatch.GetTimestamp() + Patience.SpinTicks;
        while (Room(wanted) < wanted) {
            if (Stopwatch.GetTimestamp() > until)
                return false;
            Thread.Yield();
        }
        return true;
    }

    /// <summary>Say that this side sleeps for room, and look again; whether it may.</summary>
    public bool MaySleep(long wanted) {
        ref var sleeps = ref Memory.Int32(Control + WriterSleeps);
        Volatile.Write(ref sleeps, 1);
        Interlocked.MemoryBarrier();
        if (Room(wanted) < wanted)
            return true;
        Volatile.Write(ref sleeps, 0);
        return false;
    }

    private bool IsSound(long tail) => (tail & 7) == 0 && (ulong)(_head - tail) <= (ulong)Size;

    /// <summary>Have this many bytes free; returns how many are.</summary>
    private long Room(long wanted) {
        if (Size - (_head - _tail) < wanted) {
            var tail = Volatile.Read(ref Memory.Int64(Control + Tail));
            if (!IsSound(tail))
                throw Corrupt();
            _tail = tail;
        }
        return Size - (_head - _tail);
    }

    /// <summary>Write a record for which there is room, and publish it.</summary>
    private void Put(ReadOnlySpan<byte> bytes, int flags) {
        var at = _head & (Size - 1);
        Memory.Int32(Data + at) = bytes.Length;
        Memory.Int32(Data + at + 4) = flags;
        at = (_head + HeaderSize) & (Size - 1);
        var first = (int)Math.Min(bytes.Length, Size - at);
        bytes[..first].CopyTo(Memory.Slice(Data + at, first));
        bytes[first..].CopyTo(Memory.Slice(Data, bytes.Length - first));
        _head += SpanOf(bytes.Length);
        Volatile.Write(ref Memory.Int64(Control + Head), _head);
    }
}

/// <summary>The end of a ring that reads.</summary>
internal sealed class RingReader : RingEnd {
    public const int More = 1; // a flag: the message goes on in the next record
    private long _head, _tail; // the former as last seen

    private RingReader(Segment segment) : base(segment, toHost: false) {
        _tail = Volatile.Read(ref Memory.Int64(Control + Tail));
        _head = _tail;
    }

    public static RingReader Open(Segment segment) => new(segment);

    /// <summary>Whether all that was seen has been taken.</summary>
    public bool IsDrained => _head == _tail;

    public bool IsReady =>
        _head != _tail || Volatile.Read(ref Memory.Int64(Control + Head)) != _tail;

    /// <summary>Look at the next record, which stays; -1 bytes where there is none. False where the
    /// ring holds what cannot be.</summary>
    public bool Next(out int nbytes, out int flags) {
        nbytes = -1;
        flags = 0;
        if (_head == _tail) {
            var head = Volatile.Read(ref Memory.Int64(Control + Head));
            if (head == _tail)
                return true;
            if ((ulong)(head - _tail) > (ulong)Size || (head & 7) != 0)
                return false;
            _head = head;
        }
        var at = Data + (_tail & (Size - 1));
        var length = (uint)Volatile.Read(ref Memory.Int32(at));
        flags = Volatile.Read(ref Memory.Int32(at + 4));
        if (SpanOf(length) > _head - _tail || (flags & ~More) != 0)
            return false;
        nbytes = (int)length;
        return true;
    }

    /// <summary>Copy the record whose length <c>Next</c> has just told; the writer may have its
    /// place.</summary>
    public void Take(Span<byte> to) {
        var at = (_tail + HeaderSize) & (Size - 1);
        var first = (int)Math.Min(to.Length, Size - at);
        Memory.Slice(Data + at, first).CopyTo(to);
        Memory.Slice(Data, to.Length - first).CopyTo(to[first..]);
        _tail += SpanOf(to.Length);
        Volatile.Write(ref Memory.Int64(Control + Tail), _tail);
    }

    /// <summary>Say that this side sleeps, and look again; whether it may.</summary>
    public bool MaySleep() {
        Volatile.Write(ref Memory.Int32(Control + ReaderSleeps), 1);
        Interlocked.MemoryBarrier();
        if (!IsReady)
            return true;
        Awake();
        return false;
    }

    /// <summary>This side is awake again, for whatever reason: no wake-up is wanted.</summary>
    public void Awake() => Volatile.Write(ref Memory.Int32(Control + ReaderSleeps), 0);

    /// <summary>After records were taken: whether the writer has to be woken.</summary>
    public bool MustWakeWriter() => TakeFlag(WriterSleeps);
}

/// <summary>The segment that the host has made for this process; what its header says was
/// checked.</summary>
internal sealed class Segment {
    public const int Rings = 4096; // where the data of the rings begin
    private const int BlockHeader = 64;
    private const long Magic = 0x4D48534F4E455A; // "ZENOSHM" and a zero byte
    private readonly List<(long Begin, long End)> _blocks = new(); // in ascending order, no headers
    private readonly long _arena, _arenaEnd;

    private Segment(Mapping memory, long ringSize, long arena, long arenaSize) {
        Memory = memory;
        RingSize = ringSize;
        _arena = arena;
        _arenaEnd = arena + arenaSize;
    }

    public Mapping Memory { get; }

    public long RingSize { get; }

    /// <summary>Null where there is no segment, or none that this source understands.</summary>
    public static Segment? Attach(string? announced) {
        if (!BitConverter.IsLittleEndian || Mapping.Attach(announced) is not { } memory)
            return null;
        long ringSize = memory.Int32(12), arena = memory.Int64(16), arenaSize = memory.Int64(24);
        var isSound = memory.Int64(0) == Magic && memory.Int32(8) == 1
            && ringSize is >= 4096 and <= 1 << 30 && (ringSize & (ringSize - 1)) == 0
            && arena >= Rings + 2 * ringSize && arena <= memory.Size && arena % 64 == 0
            && arenaSize >= 0 && arenaSize <= memory.Size - arena;
        if (isSound)
            return new Segment(memory, ringSize, arena, arenaSize);
        memory.Dispose();
        return null;
    }

    /// <summary>Take a block of the guest's own arena; false where there is no room.</summary>
    public bool Take(long nbytes, out long offset, out Span<byte> bytes) {
        offset = 0;
        bytes = default;
        // Those that the host has done with go.
        _blocks.RemoveAll(block => Volatile.Read(ref Memory.Int32(block.Begin - BlockHeader)) == 0);
        if (nbytes < 0 || nbytes > Math.Min(Memory.Size, int.MaxValue))
            return false;
        var size = (nbytes + 63) & ~63L;
        var begin = _arena;
        var index = 0;
        for (; index < _blocks.Count; index++) {
            if (_blocks[index].Begin - BlockHeader - begin >= size + BlockHeader)
                break;
            begin = _blocks[index].End;
        }
        if (index == _blocks.Count && _arenaEnd - begin < size + BlockHeader)
            return false;
        offset = begin + BlockHeader;
        _blocks.Insert(index, (offset, offset + size));
        Volatile.Write(ref Memory.Int32(begin), 1);
        bytes = Memory.Slice(offset, (int)nbytes);
        return true;
    }

    public void GiveBack(long offset) {
        if (_blocks.Exists(block => block.Begin == offset))
            Volatile.Write(ref Memory.Int32(offset - BlockHeader), 0);
    }
}

/// <summary>Memory that is shared with the host. All accesses to it stay inside: an offset that
/// does not is a bug in this file, and throws.</summary>
internal sealed unsafe class Mapping : IDisposable {
    private byte* _base;

    private Mapping(byte* at, long size) {
        _base = at;
        Size = size;
    }

    public long Size { get; private set; }

    /// <summary>Map what was announced as "DESCRIPTOR:SIZE"; null where that fails.</summary>
    public static Mapping? Attach(string? announced) {
        var parts = announced?.Split(':');
        var culture = CultureInfo.InvariantCulture;
        if (parts is not { Length: 2 } || !OperatingSystem.IsLinux() || sizeof(nint) != 8
            || !int.TryParse(parts[0], NumberStyles.None, culture, out var fd)
            || !long.TryParse(parts[1], NumberStyles.None, culture, out var size)
            || size < Segment.Rings)
            return null;
        return Of(fd, size);
    }

    /// <summary>Map what lies behind a descriptor, which may be closed then; null where that
    /// fails.</summary>
    public static Mapping? Of(int fd, long size) {
        var at = Posix.Map(fd, size);
        return at == null ? null : new Mapping(at, size);
    }

    public ref long Int64(long offset) => ref *(long*)At(offset, sizeof(long));

    public ref int Int32(long offset) => ref *(int*)At(offset, sizeof(int));

    public Span<byte> Slice(long offset, int nbytes) => new(At(offset, nbytes), nbytes);

    public bool TrySlice(long offset, long nbytes, out Span<byte> bytes) {
        bytes = default;
        if (offset < 0 || nbytes < 0 || nbytes > int.MaxValue || offset > Size
            || nbytes > Size - offset)
            return false;
        bytes = Slice(offset, (int)nbytes);
        return true;
    }

    public void Dispose() {
        if (_base != null)
            Posix.Unmap(_base, Size);
        _base = null;
        Size = 0;
    }

    private byte* At(long offset, int nbytes) {
        if (offset < 0 || nbytes < 0 || offset > Size || nbytes > Size - offset)
            throw new ArgumentOutOfRangeException(nameof(offset));
        return _base + offset;
    }
}

/// <summary>What is asked of the system.</summary>
internal static unsafe class Posix {
    public static readonly byte[] LineEnd = { (byte)'\n' };
    private const int ReadAndWrite = 1 | 2, Shared = 1, Interrupted = 4;

    public static byte* Map(int fd, long size) {
        var at = mmap(null, (nuint)size, ReadAndWrite, Shared, fd, 0);
        return (nint)at == -1 ? null : (byte*)at;
    }

    public static void Unmap(byte* at, long size) => munmap(at, (nuint)size);

    /// <summary>Read from the host; 0 or less at the end, whatever ended it.</summary>
    public static int Read(Span<byte> to) {
        while (true) {
            nint count;
            fixed (byte* at = to)
                count = read(0, at, (nuint)to.Length);
            if (count >= 0 || Marshal.GetLastPInvokeError() != Interrupted)
                return (int)count;
        }
    }

    /// <summary>Sleep until the host has something to say; false once it has gone. The bytes only
    /// wake us.</summary>
    public static bool Sleep() {
        Span<byte> bytes = stackalloc byte[256];
        return Read(bytes) > 0;
    }

    /// <summary>Write once; returns how many bytes were, or -1 where the host has gone.</summary>
    public static int Write(ReadOnlySpan<byte> bytes) {
        while (true) {
            nint count;
            fixed (byte* at = bytes)
                count = write(1, at, (nuint)bytes.Length);
            if (count >= 0 || Marshal.GetLastPInvokeError() != Interrupted)
                return (int)count;
        }
    }

    public static void WriteAll(ReadOnlySpan<byte> bytes) {
        while (!bytes.IsEmpty) {
            var count = Write(bytes);
            if (count < 0)
                throw new IOException("the host has gone");
            bytes = bytes[count..];
        }
    }

    [DllImport("libc", SetLastError = true)]
    private static extern void* mmap(
        void* at, nuint size, int access, int how, int fd, long from);

    [DllImport("libc")]
    private static extern int munmap(void* at, nuint size);

    [DllImport("libc", SetLastError = true)]
    private static extern nint read(int fd, byte* to, nuint nbytes);

    [DllImport("libc", SetLastError = true)]
    private static extern nint write(int fd, byte* bytes, nuint nbytes);
}
