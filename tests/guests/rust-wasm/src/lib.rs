//! The behaviour guest as a WASM module in Rust; like many, it unwraps what it does not expect.
//!
//! Beside the slots that every guest has it has those of the WASI guests for variables and files.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{json, Value};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Request<'a> {
    slot_name: String,
    #[serde(borrow)]
    parameters: Parameters<'a>,
}

#[derive(Deserialize)]
struct Parameters<'a> {
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    text: Option<String>,
    message: Option<String>,
    seconds: Option<f64>,
    lines: Option<u32>,
    name: Option<String>,
    path: Option<String>,
    content: Option<String>,
}

extern "C" {
    fn malloc(size: usize) -> *mut u8;
}

#[link(wasm_import_module = "env")]
extern "C" {
    fn host_log(level: *const u8, level_size: usize, text: *const u8, size: usize);
}

thread_local! {
    static CALLS: Cell<u64> = Cell::new(0);
    static ANSWER: RefCell<Vec<u8>> = RefCell::new(Vec::new()); // until the next call
}

const NAME: &str = match option_env!("GUEST_NAME") {
    Some(name) => name,
    None => "rust-wasm",
};

fn log(level: &str, text: &str) {
    unsafe { host_log(level.as_ptr(), level.len(), text.as_ptr(), text.len()) }
}

/// Hand a NUL-terminated text to the host.
fn give(mut text: Vec<u8>) -> *const u8 {
    text.push(0);
    if cfg!(feature = "leaky") {
        return text.leak().as_ptr();
    }
    ANSWER.with(|answer| {
        *answer.borrow_mut() = text;
        answer.borrow().as_ptr()
    })
}

/// Memory for the host to write to; it gives it back to libc's `free`, which build.rs exports.
#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    unsafe { malloc(size) }
}

#[no_mangle]
pub extern "C" fn plugin_init() -> *const u8 {
    let info = json!({"name": NAME, "version": "1.0.0", "author": "tests", "language": "Rust"});
    give(info.to_string().into_bytes())
}

#[no_mangle]
pub extern "C" fn plugin_register_slots() -> *const u8 {
    let text = json!({"type": "string", "required": true});
    let slot = |slot: &str, description: &str, inputs: Value| {
        json!({"name": format!("{NAME}.{slot}"), "description": description, "inputs": inputs})
    };
    let slots = json!([
        slot("echo", "Answer the value as it came", json!({"value": {"type": "any"}})),
        slot("size", "Count a text's bytes", json!({"text": text})),
        slot("fail", "Fail with a message", json!({"message": text})),
        slot("crash", "End without an answer", json!({})),
        slot("sleep", "Take a while", json!({"seconds": {"type": "number", "required": true}})),
        slot("spam", "Print noise, then answer", json!({"lines": {"type": "int", "default": 10}})),
        slot("count", "Count the calls so far", json!({})),
        slot("env", "Read a variable and count them all", json!({"name": text})),
        slot("read", "Read a file", json!({"path": text})),
        slot("write", "Write a file", json!({"path": text, "content": text})),
    ]);
    give(slots.to_string().into_bytes())
}

fn spam(lines: u32) -> u32 {
    for i in 0..lines {
        println!("noise {i} on stdout");
        eprintln!("noise {i} on stderr");
        log("info", &format!("noise {i} in the log"));
    }
    lines
}

fn sleep(seconds: f64) -> f64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {}
    seconds
}

fn env(name: &str) -> Value {
    json!({"value": std::env::var(name).ok(), "count": std::env::vars_os().count()})
}

fn read(path: &str) -> Result<Value, String> {
    match std::fs::read_to_string(path) {
        Ok(content) => Ok(json!(content)),
        Err(error) => Err(error.to_string()),
    }
}

fn write(path: &str, content: &str) -> Result<Value, String> {
    match std::fs::write(path, content) {
        Ok(()) => Ok(json!(content.len())),
        Err(error) => Err(error.to_string()),
    }
}

fn run(request: Request) -> Result<Value, String> {
    let calls = CALLS.with(|calls| {
        calls.set(calls.get() + 1);
        calls.get()
    });
    let parameters = request.parameters;
    match request.slot_name.rsplit('.').next().unwrap() {
        "size" => Ok(json!(parameters.text.unwrap().len())),
        "fail" => Err(parameters.message.unwrap()),
        "crash" => panic!("crashing as it was told"),
        "sleep" => Ok(json!(sleep(parameters.seconds.unwrap()))),
        "spam" => Ok(json!(spam(parameters.lines.unwrap_or(10)))),
        "count" => Ok(json!(calls)),
        "env" => Ok(env(&parameters.name.unwrap())),
        "read" => read(&parameters.path.unwrap()),
        "write" => write(&parameters.path.unwrap(), &parameters.content.unwrap()),
        _ => Err(format!("unknown slot {}", request.slot_name)),
    }
}

/// # Safety
/// `text` points to `size` bytes.
#[no_mangle]
pub unsafe extern "C" fn plugin_execute(
    _name: *const u8,
    _name_size: usize,
    text: *const u8,
    size: usize,
) -> *const u8 {
    let text = std::slice::from_raw_parts(text, size);
    let request: Request = serde_json::from_slice(text).unwrap();
    if request.slot_name.ends_with(".echo") {
        // Passed through as it was written: a number keeps all its digits.
        let value = request.parameters.value.map_or("null", RawValue::get);
        let mut answer = Vec::with_capacity(value.len() + 32);
        answer.extend_from_slice(b"{\"success\":true,\"data\":");
        answer.extend_from_slice(value.as_bytes());
        answer.push(b'}');
        CALLS.with(|calls| calls.set(calls.get() + 1));
        return give(answer);
    }
    let answer = match run(request) {
        Ok(data) => json!({"success": true, "data": data, "error": null}),
        Err(error) => json!({"success": false, "data": null, "error": error}),
    };
    give(answer.to_string().into_bytes())
}

#[no_mangle]
pub extern "C" fn plugin_cleanup() {
    ANSWER.with(|answer| answer.borrow_mut().clear());
}
