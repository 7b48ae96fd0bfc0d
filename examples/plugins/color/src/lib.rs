//! Slots about colours, as a WASM module in Rust that needs nothing from the host.

use serde::Deserialize;
use serde_json::{json, Value};
use std::alloc::Layout;
use std::cell::RefCell;

#[derive(Deserialize)]
struct Request {
    slot_name: String,
    #[serde(default)]
    parameters: Value,
}

#[derive(Deserialize)]
struct Mix {
    a: String,
    b: String,
    #[serde(default = "half")]
    ratio: f64,
}

#[derive(Deserialize)]
struct Contrast {
    foreground: String,
    background: String,
}

fn half() -> f64 {
    0.5
}

type Color = [f64; 3];

/// Read `#rgb` or `#rrggbb`.
fn parse(text: &str) -> Result<Color, String> {
    let wrong = || format!("{text:?} is not a colour such as #09f or #0099ff");
    let digits = text.strip_prefix('#').ok_or_else(wrong)?;
    let mut color = [0.0; 3];
    for (i, channel) in color.iter_mut().enumerate() {
        let pair = match digits.len() {
            3 => digits.get(i..i + 1).map(|digit| digit.repeat(2)),
            6 => digits.get(2 * i..2 * i + 2).map(str::to_string),
            _ => None,
        };
        let value = u8::from_str_radix(&pair.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        *channel = f64::from(value) / 255.0;
    }
    Ok(color)
}

fn to_linear(channel: f64) -> f64 {
    if channel <= 0.04045 {
        channel / 12.92
    } else {
        ((channel + 0.055) / 1.055).powf(2.4)
    }
}

fn from_linear(light: f64) -> f64 {
    if light <= 0.0031308 {
        light * 12.92
    } else {
        1.055 * light.powf(1.0 / 2.4) - 0.055
    }
}

/// Mix light, not numbers: half red and half green is not brown.
fn mix(given: Mix) -> Result<Value, String> {
    if !(0.0..=1.0).contains(&given.ratio) {
        return Err("ratio must be 0 to 1".to_string());
    }
    let (a, b) = (parse(&given.a)?, parse(&given.b)?);
    let mut hex = String::from("#");
    for i in 0..3 {
        let light = to_linear(a[i]) * (1.0 - given.ratio) + to_linear(b[i]) * given.ratio;
        hex += &format!("{:02x}", (from_linear(light) * 255.0).round() as u8);
    }
    Ok(json!({ "color": hex }))
}

/// The contrast of the Web Content Accessibility Guidelines, 1 to 21.
fn contrast(given: Contrast) -> Result<Value, String> {
    let luminance = |color: Color| {
        0.2126 * to_linear(color[0]) + 0.7152 * to_linear(color[1]) + 0.0722 * to_linear(color[2])
    };
    let a = luminance(parse(&given.foreground)?);
    let b = luminance(parse(&given.background)?);
    let ratio = (a.max(b) + 0.05) / (a.min(b) + 0.05);
    let level = match ratio {
        r if r >= 7.0 => "AAA",
        r if r >= 4.5 => "AA",
        _ => "too low",
    };
    Ok(json!({ "ratio": (ratio * 100.0).round() / 100.0, "level": level }))
}

fn run(request: Request) -> Result<Value, String> {
    fn read<T: serde::de::DeserializeOwned>(parameters: Value) -> Result<T, String> {
        serde_json::from_value(parameters).map_err(|error| error.to_string())
    }
    match request.slot_name.as_str() {
        "color.mix" => mix(read(request.parameters)?),
        "color.contrast" => contrast(read(request.parameters)?),
        name => Err(format!("unknown slot {name}")),
    }
}

fn slots() -> Value {
    let color =
        |description: &str| json!({"type": "string", "required": true, "description": description});
    let half = json!({
        "type": "float", "required": false, "default": 0.5,
        "description": "How much of the second, 0 to 1",
    });
    json!([
        {
            "name": "color.mix",
            "description": "Mix two colours as light mixes",
            "example": r##"{"a": "#ff0000", "b": "#00ff00"}"##,
            "inputs": {"a": color("One colour"), "b": color("The other"), "ratio": half},
            "outputs": {"color": {"type": "string"}},
        },
        {
            "name": "color.contrast",
            "description": "Tell how well text of one colour reads on another",
            "example": r##"{"foreground": "#767676", "background": "#fff"}"##,
            "inputs": {
                "foreground": color("Of the text"),
                "background": color("Of what is behind it"),
            },
            "outputs": {"ratio": {"type": "float"}, "level": {"type": "string"}},
        },
    ])
}

thread_local! {
    /// The last answer: it stays until the next call, and the host never frees it.
    static ANSWER: RefCell<Vec<u8>> = RefCell::new(Vec::new());
}

fn give(data: &Value) -> *const u8 {
    ANSWER.with(|answer| {
        let mut answer = answer.borrow_mut();
        *answer = data.to_string().into_bytes();
        answer.push(0);
        answer.as_ptr()
    })
}

/// A block has its size in front of it, as `free` is not told.
#[no_mangle]
pub extern "C" fn alloc(size: usize) -> *mut u8 {
    let layout = match Layout::from_size_align(size.saturating_add(8), 8) {
        Ok(layout) => layout,
        Err(_) => return std::ptr::null_mut(),
    };
    unsafe {
        let block = std::alloc::alloc(layout);
        if block.is_null() {
            return block;
        }
        block.cast::<usize>().write(layout.size());
        block.add(8)
    }
}

/// # Safety
/// `memory` comes from `alloc` and was not freed since.
#[no_mangle]
pub unsafe extern "C" fn free(memory: *mut u8) {
    if !memory.is_null() {
        let block = memory.sub(8);
        let size = block.cast::<usize>().read();
        std::alloc::dealloc(block, Layout::from_size_align_unchecked(size, 8));
    }
}

#[no_mangle]
pub extern "C" fn plugin_init() -> *const u8 {
    give(&json!({"name": "color", "version": "1.0.0", "language": "Rust"}))
}

#[no_mangle]
pub extern "C" fn plugin_register_slots() -> *const u8 {
    give(&slots())
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
    let result = serde_json::from_slice(text)
        .map_err(|error| error.to_string())
        .and_then(run);
    give(&match result {
        Ok(data) => json!({"success": true, "data": data}),
        Err(error) => json!({"success": false, "error": error}),
    })
}

#[no_mangle]
pub extern "C" fn plugin_cleanup() {
    ANSWER.with(|answer| *answer.borrow_mut() = Vec::new());
}
