//! Inverts pictures in shared memory, as a sidecar in Rust.

mod base64;
mod json;
mod zeno;

const INFO: &str =
    r#"{"name":"negative-rust","version":"1.0.0","features":["shm","arena","binary","buffers"]}"#;
const SLOTS: &str = r#"[{"name":"negative-rust.invert","description":"Invert every byte of a picture",
"inputs":{"picture":{"type":"any","required":true,"description":"Bytes or an array"}}}]"#;

fn main() -> std::io::Result<()> {
    let mut link = zeno::Link::open();
    let mut buffer = Vec::new();
    while let Some(message) = link.receive(&mut buffer) {
        let slot = json::member(message, "slot_name").and_then(json::inside);
        let (id, slot) = match (json::member(message, "id"), slot) {
            (Some(id), Some(slot)) => (id, slot),
            _ => {
                // No call, but perhaps buffers that, as the host says, nobody has any more.
                let gone = json::items(json::member(message, "buffers").unwrap_or(b"[]"));
                gone.filter_map(json::number)
                    .for_each(|id| link.forget_buffer(id));
                continue;
            }
        };
        let answer = match slot {
            b"plugin_init" => Some(INFO.to_string()),
            b"plugin_register_slots" => Some(SLOTS.replace('\n', " ")),
            b"negative-rust.invert" => json::member(message, "parameters")
                .and_then(|parameters| json::member(parameters, "picture"))
                .and_then(|picture| invert(&mut link, picture)),
            _ => None,
        };
        let id = String::from_utf8_lossy(id);
        let rest = match answer {
            Some(data) => format!(r#""success":true,"data":{data},"binary":true"#),
            None => r#""success":false,"error":"there is no such slot, or no picture""#.to_string(),
        };
        link.send(format!(r#"{{"type":"guest_response","id":{id},{rest}}}"#).as_bytes())?;
        if slot == b"plugin_init" {
            link.use_ring();
        }
    }
    Ok(())
}

/// Answer a picture with every byte inverted, as elements of the same type and in the same shape.
/// One in a buffer is inverted where it is.
fn invert(link: &mut zeno::Link, picture: &[u8]) -> Option<String> {
    let sent = json::member(picture, "$bytes")?;
    let mut about = String::new();
    for name in ["dtype", "shape"] {
        if let Some(value) = json::member(picture, name) {
            about += &format!(r#","{name}":{}"#, String::from_utf8_lossy(value));
        }
    }
    let mut bytes;
    if let Some(text) = json::inside(sent) {
        bytes = base64::decode(text)?;
    } else {
        let mut place = json::items(sent).map(json::number::<u64>);
        let (offset, nbytes) = (place.next()??, place.next()??);
        if let Some(id) = place.next() {
            let bytes = link.buffer_bytes(id?, offset, nbytes)?;
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            let same = String::from_utf8_lossy(sent);
            return Some(format!(r#"{{"$bytes":{same}{about}}}"#));
        }
        if let Some((from, offset, to)) = link.bytes_and_new(offset, nbytes, nbytes) {
            for (byte, inverted) in from.iter().zip(to) {
                *inverted = !byte;
            }
            return Some(format!(r#"{{"$bytes":[{offset},{nbytes}]{about}}}"#));
        }
        bytes = link.bytes(offset, nbytes)?.to_vec(); // there is no room
    }
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    let mut text = Vec::new();
    base64::encode(&bytes, &mut text);
    let text = String::from_utf8_lossy(&text);
    Some(format!(r#"{{"$bytes":"{text}"{about}}}"#))
}
