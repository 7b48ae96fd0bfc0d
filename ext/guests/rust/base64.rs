//! Base64 for bytes that cannot go through shared memory.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Append bytes to a text.
pub fn encode(bytes: &[u8], to: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            to.push(if index <= group.len() { digit } else { b'=' });
        }
    }
}

/// Decode a text; None where it is no base64.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.chunks(4) {
        let digits: &[u8] = match group {
            [digits @ .., b'=', b'='] | [digits @ .., b'='] | digits => digits,
        };
        let mut bits = 0;
        for &digit in digits {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - digits.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..digits.len().max(1)]);
    }
    Some(bytes)
}
