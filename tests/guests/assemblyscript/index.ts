// The behaviour guest as a WASM module in AssemblyScript.
//
// JSON is read and written by hand, as bytes, and values are passed on as they were written. Texts in
// this source are static, and memory is taken from the heap alone: the collector has nothing to do.

@external("env", "host_log")
declare function hostLog(level: usize, levelSize: usize, text: usize, size: usize): void;
@external("wasi_snapshot_preview1", "fd_write")
declare function fdWrite(fd: i32, parts: usize, count: usize, written: usize): i32;
@external("wasi_snapshot_preview1", "clock_time_get")
declare function clockTimeGet(clock: i32, precision: u64, time: usize): i32;

const NAME = "assemblyscript";
const TEXT = '{"type":"string","required":true}';
const QUOTE: u8 = 0x22;
const BACKSLASH: u8 = 0x5c;

// ---- memory -----------------------------------------------------------------------------------

export function alloc(size: usize): usize {
  return heap.alloc(size);
}

export function free(address: usize): void {
  heap.free(address);
}

let answer: usize = 0; // until the next call
let answerSize: usize = 0;
let answerCapacity: usize = 0;

function putBytes(from: usize, size: usize): void {
  if (answerSize + size > answerCapacity) {
    answerCapacity = max<usize>(answerSize + size, 2 * answerCapacity + 4096);
    answer = answer ? heap.realloc(answer, answerCapacity) : heap.alloc(answerCapacity);
  }
  memory.copy(answer + answerSize, from, size);
  answerSize += size;
}

const scratch: usize = memory.data(256);

// Copy an ASCII text to where the next such text will go.
function ascii(text: string): usize {
  for (let i = 0; i < text.length; i++) store<u8>(scratch + i, <u8>text.charCodeAt(i));
  return scratch;
}

function put(text: string): void {
  putBytes(ascii(text), text.length);
}

function putInteger(number: u64): void {
  if (number >= 10) putInteger(number / 10);
  store<u8>(scratch, <u8>(0x30 + (number % 10)));
  putBytes(scratch, 1);
}

// End what was put with a NUL, and return it.
function finish(): usize {
  put("\0");
  return answer;
}

// ---- reading JSON -----------------------------------------------------------------------------

let textEnd: usize = 0; // of the request

function isSpace(byte: u8): bool {
  return byte == 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

function skipSpace(at: usize): usize {
  while (at < textEnd && isSpace(load<u8>(at))) at++;
  return at;
}

function skipString(at: usize): usize {
  for (at++; at < textEnd; at++) {
    const byte = load<u8>(at);
    if (byte == QUOTE) return at + 1;
    if (byte == BACKSLASH) at++;
  }
  throw new Error("a text never ends");
}

function isStop(byte: u8): bool {
  return byte == 0x2c || byte == 0x3a || byte == 0x5d || byte == 0x7d || isSpace(byte);
}

// Return the end of the value that begins at `at`.
function skip(at: usize): usize {
  let depth = 0;
  while (at < textEnd) {
    const byte = load<u8>(at);
    if (byte == QUOTE) {
      at = skipString(at);
    } else if (byte == 0x7b || byte == 0x5b) {
      depth++;
      at++;
      continue;
    } else if (byte == 0x7d || byte == 0x5d) {
      depth--;
      at++;
    } else if (depth > 0) {
      at++;
      continue;
    } else {
      while (at < textEnd && !isStop(load<u8>(at))) at++;
    }
    if (depth == 0) return at;
  }
  throw new Error("a value never ends");
}

function equals(at: usize, end: usize, text: string): bool {
  if (end - at != <usize>text.length) return false;
  for (let i = 0; i < text.length; i++) {
    if (load<u8>(at + i) != <u8>text.charCodeAt(i)) return false;
  }
  return true;
}

// Return where the value of an object's member begins, 0 where there is none of that name.
function member(object: usize, name: string): usize {
  let at = skipSpace(object + 1);
  while (at < textEnd && load<u8>(at) == QUOTE) {
    const end = skipString(at);
    const value = skipSpace(skipSpace(end) + 1);
    if (equals(at + 1, end - 1, name)) return value;
    at = skipSpace(skip(value));
    if (load<u8>(at) == 0x2c) at = skipSpace(at + 1);
  }
  return 0;
}

function hex(at: usize): u32 {
  let code: u32 = 0;
  for (let i = 0; i < 4; i++) {
    const byte: u32 = load<u8>(at + i);
    code = (code << 4) | (byte <= 0x39 ? byte - 0x30 : (byte | 0x20) - 0x57);
  }
  return code;
}

// Count the UTF-8 bytes that a string stands for.
function textSize(at: usize): u64 {
  let size: u64 = 0;
  const end = skipString(at) - 1;
  for (at++; at < end; size++) {
    if (load<u8>(at) != BACKSLASH) {
      at++;
    } else if (load<u8>(at + 1) != 0x75) {
      at += 2;
    } else {
      const code = hex(at + 2);
      at += 6;
      if (code >= 0xd800 && code < 0xdc00 && load<u8>(at) == BACKSLASH) {
        at += 6;
        size += 3;
      } else {
        size += code < 0x80 ? 0 : code < 0x800 ? 1 : 2;
      }
    }
  }
  return size;
}

// Read a number without an exponent; `otherwise` where there is none.
function numberAt(at: usize, otherwise: f64): f64 {
  if (!at) return otherwise;
  let number: f64 = 0;
  let scale: f64 = 0;
  for (const end = skip(at); at < end; at++) {
    const byte = load<u8>(at);
    if (byte == 0x2e) {
      scale = 1;
    } else {
      number = number * 10 + <f64>(byte - 0x30);
      scale *= 10;
    }
  }
  return scale ? number / scale : number;
}

// ---- slots ------------------------------------------------------------------------------------

let calls: u64 = 0;

function say(fd: i32, text: string): void {
  const part: usize = memory.data(8);
  const written: usize = memory.data(4);
  store<usize>(part, ascii(text));
  store<usize>(part + 4, text.length);
  fdWrite(fd, part, 1, written);
}

function now(): u64 {
  const time: usize = memory.data(8, 8);
  clockTimeGet(1, 1, time);
  return load<u64>(time);
}

function sleep(seconds: f64): void {
  const start = now();
  while (<f64>(now() - start) < seconds * 1e9) {}
}

function spam(lines: u64): void {
  const level: usize = memory.data<u8>([0x69, 0x6e, 0x66, 0x6f]); // info
  for (let i: u64 = 0; i < lines; i++) {
    say(1, "noise on stdout\n");
    say(2, "noise on stderr\n");
    hostLog(level, 4, ascii("noise in the log"), 16);
  }
}

function succeed(): void {
  put('{"success":true,"data":');
}

// Fail with a message and the inside of a string, which is escaped already.
function fail(message: string, value: usize): void {
  put('{"success":false,"data":null,"error":"');
  put(message);
  putBytes(value + 1, skipString(value) - value - 2);
  put('"');
}

function isSlot(slot: usize, name: string): bool {
  const end = skipString(slot) - 1;
  let at = end;
  while (at > slot + 1 && load<u8>(at - 1) != 0x2e) at--;
  return equals(at, end, name);
}

function run(slot: usize, parameters: usize): void {
  calls++;
  if (isSlot(slot, "echo")) {
    const value = member(parameters, "value");
    succeed();
    if (value) putBytes(value, skip(value) - value);
    else put("null");
  } else if (isSlot(slot, "size")) {
    succeed();
    putInteger(textSize(member(parameters, "text")));
  } else if (isSlot(slot, "fail")) {
    fail("", member(parameters, "message"));
  } else if (isSlot(slot, "crash")) {
    throw new Error("crashing as it was told");
  } else if (isSlot(slot, "sleep")) {
    const seconds = member(parameters, "seconds");
    sleep(numberAt(seconds, 0));
    succeed();
    putBytes(seconds, skip(seconds) - seconds);
  } else if (isSlot(slot, "spam")) {
    const lines = <u64>numberAt(member(parameters, "lines"), 10);
    spam(lines);
    succeed();
    putInteger(lines);
  } else if (isSlot(slot, "count")) {
    succeed();
    putInteger(calls);
  } else {
    fail("unknown slot ", slot);
  }
  put("}");
}

function putSlot(name: string, description: string, input: string, type: string): void {
  if (answerSize > 1) put(",");
  put('{"name":"');
  put(NAME);
  put(".");
  put(name);
  put('","description":"');
  put(description);
  put('","inputs":{');
  if (input.length) {
    put('"');
    put(input);
    put('":');
    put(type);
  }
  put("}}");
}

export function plugin_init(): usize {
  answerSize = 0;
  put('{"name":"');
  put(NAME);
  put('","version":"1.0.0","author":"tests","language":"AssemblyScript"}');
  return finish();
}

export function plugin_register_slots(): usize {
  answerSize = 0;
  put("[");
  putSlot("echo", "Answer the value as it came", "value", '{"type":"any"}');
  putSlot("size", "Count a text's bytes", "text", TEXT);
  putSlot("fail", "Fail with a message", "message", TEXT);
  putSlot("crash", "End without an answer", "", "");
  putSlot("sleep", "Take a while", "seconds", '{"type":"number","required":true}');
  putSlot("spam", "Print noise, then answer", "lines", '{"type":"int","default":10}');
  putSlot("count", "Count the calls so far", "", "");
  put("]");
  return finish();
}

export function plugin_execute(name: usize, nameSize: usize, text: usize, size: usize): usize {
  textEnd = text + size;
  answerSize = 0;
  run(member(text, "slot_name"), member(text, "parameters"));
  return finish();
}

export function plugin_cleanup(): void {
  if (answer) heap.free(answer);
  answer = answerSize = answerCapacity = 0;
}
