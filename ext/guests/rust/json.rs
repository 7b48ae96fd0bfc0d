//! JSON for this guest: find members in a text without a tree.
//!
//! A value is a slice of the text it came from, so that what is passed through stays as it was
//! written. Nothing is validated, for the host sends well-formed JSON, and nothing recurses.

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The end of the string that opens at `at`.
fn skip_string(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += text
            .get(at..)?
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\'))?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The end of the value that begins at `at`.
fn skip(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut depth = 0usize;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => at = skip_string(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' if depth == 0 => break,
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => {
                at += 1;
                continue; // in the middle of a number or a word
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
    (depth == 0 && at > start).then_some(at)
}

/// The items of an array; of an object its keys and values in turn.
pub fn items(container: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = skip_space(container, 0) + 1;
    let is_container = matches!(container.get(at - 1), Some(b'{' | b'['));
    std::iter::from_fn(move || {
        if !is_container {
            return None;
        }
        at = skip_space(container, at);
        if matches!(container.get(at), Some(b',' | b':')) {
            at = skip_space(container, at + 1);
        }
        let end = skip(container, at)?;
        let item = &container[at..end];
        at = end;
        Some(item)
    })
}

/// The value of an object's member; its name is written without escapes.
pub fn member<'t>(object: &'t [u8], name: &str) -> Option<&'t [u8]> {
    let mut items = items(object);
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        if inside(key) == Some(name.as_bytes()) {
            return Some(value);
        }
    }
    None
}

/// What stands between the quotes of a string; None where the value is none.
pub fn inside(value: &[u8]) -> Option<&[u8]> {
    match value {
        [b'"', inside @ .., b'"'] => Some(inside),
        _ => None,
    }
}

/// A number, read as Rust reads its own.
pub fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
