/* The protocol of zeno_ring.h, for the model checker Spin: no message is lost, torn, doubled or out of
 * order, and no side sleeps on while the other has something for it.
 *
 * Memory is that of x86 (TSO): what a side stores lies in a queue of its own, in order, until it
 * reaches memory at some later moment; a fence, or an exchange, waits until the queue is empty. A pipe
 * holds one byte, which is as good as many: a full one wakes as well. A record takes one or two slots.
 *
 * FENCES and RECHECK are 1; with either 0 the checker has to find a side that sleeps for ever.
 */
#ifndef FENCES
#define FENCES 1
#endif
#ifndef RECHECK
#define RECHECK 1
#endif
#define SLOTS 3
#define MESSAGES 5
#define LENGTH(n) (1 + (n) % 2)

/* What is shared: the slots, and behind them the cursors and the flags. */
#define HEAD SLOTS
#define TAIL (SLOTS + 1)
#define READER_SLEEPS (SLOTS + 2)
#define WRITER_SLEEPS (SLOTS + 3)
byte memory[SLOTS + 4];

chan writers = [3] of { byte, byte }; /* stores that have not reached memory */
chan readers = [3] of { byte, byte };
chan wakes_reader = [1] of { bit };
chan wakes_writer = [1] of { bit };

proctype drain(chan stores)
{
    byte at, value;
end:
    do
    :: atomic { stores ? at, value -> memory[at] = value }
    od
}

#if FENCES
#define fence(stores) empty(stores)
#else
#define fence(stores) skip
#endif

/* Take a flag back, and wake who set it. */
inline wake(stores, flag, pipe)
{
    fence(stores);
    if
    :: memory[flag] ->
        atomic {
            empty(stores) ->
            if
            :: memory[flag] -> memory[flag] = 0; if :: nfull(pipe) -> pipe ! 1 :: full(pipe) -> skip fi
            :: else -> skip
            fi
        }
    :: else -> skip
    fi
}

proctype writer()
{
    byte head, tail, message, slot;
    for (message : 1 .. MESSAGES) {
        do
        :: tail = memory[TAIL];
            if :: SLOTS - (head - tail) >= LENGTH(message) -> break :: else -> skip fi;
            writers ! WRITER_SLEEPS, 1;
            fence(writers);
            if :: RECHECK -> tail = memory[TAIL] :: else -> skip fi;
            if
            :: SLOTS - (head - tail) >= LENGTH(message) -> writers ! WRITER_SLEEPS, 0
            :: else -> wakes_writer ? _ /* asleep */
            fi
        od;
        for (slot : 1 .. LENGTH(message)) {
            writers ! (head + slot - 1) % SLOTS, message
        }
        head = head + LENGTH(message);
        writers ! HEAD, head;
        wake(writers, READER_SLEEPS, wakes_reader)
    }
}

proctype reader()
{
    byte head, tail, message, slot;
    for (message : 1 .. MESSAGES) {
        do
        :: head = memory[HEAD];
            if :: head != tail -> break :: else -> skip fi;
            readers ! READER_SLEEPS, 1;
            fence(readers);
            if :: RECHECK -> head = memory[HEAD] :: else -> skip fi;
            if
            :: head == tail -> wakes_reader ? _ /* asleep */
            :: else -> skip
            fi;
            readers ! READER_SLEEPS, 0
        od;
        assert(head - tail >= LENGTH(message) && head - tail <= SLOTS);
        for (slot : 1 .. LENGTH(message)) {
            assert(memory[(tail + slot - 1) % SLOTS] == message)
        }
        tail = tail + LENGTH(message);
        readers ! TAIL, tail;
        wake(readers, WRITER_SLEEPS, wakes_writer)
    }
}

init
{
    atomic { run drain(writers); run drain(readers); run writer(); run reader() }
}
