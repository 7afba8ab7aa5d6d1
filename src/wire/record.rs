//! The records on a child's result channel: a tag, a length, a payload.
//!
//! Runs on: the I/O thread, a child.
//!
//! Everything on this channel was written by the job's own process, which runs code that
//! nobody trusts: the host takes it for what the job says, never for what is so.

/// `child_main`'s return value, as JSON.
pub(crate) const RESULT: u8 = b'R';
/// Instead of a result: why what `child_main` returned has no JSON form.
pub(crate) const NO_FORM: u8 = b'X';
/// What the result does not tell of what `child_main` returned.
pub(crate) const NOTE: u8 = b'N';
/// The name of the system call that ended the job.
pub(crate) const BLOCKED: u8 = b'B';
/// Progress, as JSON: `{"fraction": 0.5, "text": "half"}`.
pub(crate) const PROGRESS: u8 = b'P';

const HEADER: usize = 5;

/// The bytes before a payload.
pub(crate) fn header(tag: u8, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_le_bytes();
    [tag, a, b, c, d]
}

/// Puts parts behind each other, as far as there is room; allocates nothing, for signal
/// handlers. Returns the length.
pub(crate) fn concat_into(buffer: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut length = 0;
    for part in parts {
        let room = part.len().min(buffer.len() - length);
        buffer[length..length + room].copy_from_slice(&part[..room]);
        length += room;
    }
    length
}

/// A whole record in a fixed buffer; a payload that does not fit is cut.
pub(crate) fn frame_into(buffer: &mut [u8], tag: u8, payload: &[u8]) -> usize {
    let payload = &payload[..payload.len().min(buffer.len() - HEADER)];
    concat_into(buffer, &[&header(tag, payload.len() as u32), payload])
}

/// Takes the first complete record off the front of `bytes`: tag, payload, rest. `None` if
/// there is none.
pub(crate) fn split_first(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let length = u32::from_le_bytes(header[1..].try_into().expect("four bytes"));
    let (payload, rest) = rest.split_at_checked(length as usize)?;
    Some((header[0], payload, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_in_order() {
        let mut buffer = [0; 64];
        let first = frame_into(&mut buffer, PROGRESS, b"{}");
        let second = frame_into(&mut buffer[first..], RESULT, b"42");
        let (tag, payload, rest) = split_first(&buffer[..first + second]).expect("a record");
        assert_eq!((tag, payload), (PROGRESS, &b"{}"[..]));
        assert_eq!(split_first(rest), Some((RESULT, &b"42"[..], &b""[..])));
    }

    #[test]
    fn an_incomplete_record_is_none() {
        let mut buffer = [0; 64];
        let length = frame_into(&mut buffer, RESULT, b"42");
        for cut in 0..length {
            assert_eq!(split_first(&buffer[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_cut() {
        let mut buffer = [0; 8];
        assert_eq!(frame_into(&mut buffer, BLOCKED, b"longer"), 8);
        assert_eq!(split_first(&buffer), Some((BLOCKED, &b"lon"[..], &b""[..])));
    }
}
