//! Collecting what a child writes, up to a limit.

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// What one stream has brought so far.
#[derive(Debug, Default)]
pub struct Capture {
    pub bytes: Vec<u8>,
    /// Whether there was more than the limit.
    pub truncated: bool,
}

impl Capture {
    /// Reads to the stream's end. What goes beyond `limit` bytes is read and thrown away, so
    /// that the writer does not wait, and `overflow` is told.
    pub async fn collect(
        &mut self,
        source: Option<pipe::Receiver>,
        limit: u64,
        overflow: &Notify,
    ) -> std::io::Result<()> {
        let Some(mut source) = source else {
            return Ok(());
        };
        let mut chunk = [0; 16 << 10];
        loop {
            let count = source.read(&mut chunk).await?;
            if count == 0 {
                return Ok(());
            }
            let room = (limit as usize).saturating_sub(self.bytes.len()).min(count);
            self.bytes.extend_from_slice(&chunk[..room]);
            if room < count && !self.truncated {
                self.truncated = true;
                overflow.notify_one();
            }
        }
    }
}
