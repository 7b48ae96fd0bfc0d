//! A guest in Rust that hears its host through shared memory, by ext/guests/rust/zeno.rs.

mod base64;
mod json;
mod zeno;

use std::time::Duration;
use std::{env, io, process, thread};

const SLOTS: [(&str, &str); 5] = [
    ("echo", r#"{"value":{"type":"any"}}"#),
    ("sleep", r#"{"seconds":{"type":"number","required":true}}"#),
    ("fail", r#"{"message":{"type":"string","required":true}}"#),
    ("crash", "{}"),
    ("invert", r#"{"data":{"type":"any","required":true}}"#),
];

fn main() -> io::Result<()> {
    let name = env::var("ZENO_PLUGIN_NAME").unwrap_or_else(|_| "rust-ring".into());
    let mut link = zeno::Link::open();
    let (mut buffer, mut answer) = (Vec::new(), Vec::new());
    while let Some(message) = link.receive(&mut buffer) {
        let (id, slot) = match (
            json::member(message, "id"),
            json::member(message, "slot_name"),
        ) {
            (Some(id), Some(slot)) => (id, json::inside(slot).unwrap_or(slot)),
            _ => {
                forget_buffers(&mut link, message); // no call
                continue;
            }
        };
        answer.clear();
        answer.extend_from_slice(br#"{"type":"guest_response","id":"#);
        answer.extend_from_slice(id);
        answer.extend_from_slice(br#","success":"#);
        match slot {
            b"plugin_init" => answer.extend_from_slice(info(&link, &name).as_bytes()),
            b"plugin_register_slots" => answer.extend_from_slice(slots(&name).as_bytes()),
            _ => {
                let parameters = json::member(message, "parameters").unwrap_or(b"{}");
                let slot = slot.rsplit(|&byte| byte == b'.').next().unwrap_or(slot);
                run(&mut link, slot, parameters, &mut answer);
            }
        }
        answer.push(b'}');
        link.send(&answer)?;
        if slot == b"plugin_init" {
            link.use_ring();
        }
    }
    Ok(())
}

/// Let go of the buffers that a message names, if it names any.
fn forget_buffers(link: &mut zeno::Link, message: &[u8]) {
    let ids = json::items(json::member(message, "buffers").unwrap_or(b"[]"));
    ids.filter_map(json::number)
        .for_each(|id| link.forget_buffer(id));
}

fn info(link: &zeno::Link, name: &str) -> String {
    let features = [
        (link.offers_ring(), r#""shm""#),
        (link.offers_arena(), r#""arena""#),
        (link.offers_buffers(), r#""buffers""#),
    ];
    let offered = features.iter().filter(|feature| feature.0);
    let features = offered.map(|feature| feature.1).collect::<Vec<_>>();
    let features = features.join(",");
    let about = format!(r#""name":"{name}","version":"1.0.0","author":"tests""#);
    format!(r#"true,"data":{{{about},"features":[{features}]}}"#)
}

fn slots(name: &str) -> String {
    let slots = SLOTS.map(|(slot, inputs)| {
        format!(r#"{{"name":"{name}.{slot}","description":"","inputs":{inputs}}}"#)
    });
    format!(r#"true,"data":[{}]"#, slots.join(","))
}

/// Append what a slot answers: `true` and its data, or `false` and its error.
fn run(link: &mut zeno::Link, slot: &[u8], parameters: &[u8], answer: &mut Vec<u8>) {
    let parameter = |name| json::member(parameters, name).unwrap_or(b"null");
    match slot {
        b"echo" => {
            answer.extend_from_slice(br#"true,"data":"#);
            answer.extend_from_slice(parameter("value"));
        }
        b"sleep" => {
            let seconds = json::number(parameter("seconds")).unwrap_or(0.0);
            thread::sleep(Duration::from_secs_f64(seconds));
            answer.extend_from_slice(br#"true,"data":"#);
            answer.extend_from_slice(parameter("seconds"));
        }
        b"fail" => {
            answer.extend_from_slice(br#"false,"error":"#);
            answer.extend_from_slice(parameter("message"));
        }
        b"crash" => {
            eprintln!("rust guest: crashing as it was told");
            process::exit(3);
        }
        b"invert" => {
            let sent = json::member(parameter("data"), "$bytes").unwrap_or(b"null");
            if invert(link, sent, answer).is_none() {
                answer.extend_from_slice(br#"false,"error":"these are no bytes""#);
            }
        }
        _ => answer.extend_from_slice(br#"false,"error":"unknown slot""#),
    }
}

/// Answer bytes with every bit inverted; None, and no answer, where none were sent. Those in a
/// buffer are inverted where they are.
fn invert(link: &mut zeno::Link, sent: &[u8], answer: &mut Vec<u8>) -> Option<()> {
    let mut bytes;
    if let Some(text) = json::inside(sent) {
        bytes = base64::decode(text)?;
    } else {
        let mut place = json::items(sent).map(json::number::<u64>);
        let (offset, nbytes) = (place.next()??, place.next()??);
        if let Some(id) = place.next() {
            let bytes = link.buffer_bytes(id?, offset, nbytes)?;
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            answer.extend_from_slice(br#"true,"data":{"$bytes":"#);
            answer.extend_from_slice(sent);
            answer.extend_from_slice(br#"},"binary":true"#);
            return Some(());
        }
        if let Some((from, offset, to)) = link.bytes_and_new(offset, nbytes, nbytes) {
            for (byte, inverted) in from.iter().zip(to) {
                *inverted = !byte;
            }
            let data = format!(r#"true,"data":{{"$bytes":[{offset},{nbytes}]}},"binary":true"#);
            answer.extend_from_slice(data.as_bytes());
            return Some(());
        }
        bytes = link.bytes(offset, nbytes)?.to_vec(); // there is no room
    }
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    answer.extend_from_slice(br#"true,"data":{"$bytes":""#);
    base64::encode(&bytes, answer);
    answer.extend_from_slice(br#""},"binary":true"#);
    Some(())
}
