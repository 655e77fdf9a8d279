//! The file of finished work of a run that is not complete yet.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// An append-only file, one JSON object a line. It survives being killed at any moment: whatever
/// follows the last line that reads is cut off when the journal is opened again.
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal, or starts an empty one, and reads what stands in it. The folder must exist.
    pub(crate) fn open<T: DeserializeOwned>(path: &Path) -> io::Result<(Self, Vec<T>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;

        let mut entries = Vec::new();
        let mut n_good = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(entry) if line.ends_with(b"\n") => entries.push(entry),
                _ => break,
            }
            n_good += line.len();
        }
        if n_good < bytes.len() {
            tracing::warn!(
                path = %path.display(),
                n_bytes = bytes.len() - n_good,
                "the journal ends in a line that does not read; what it held is measured again"
            );
        }
        file.set_len(n_good as u64)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self { file }, entries))
    }

    /// Appends one line per entry; they are on the disk when this returns.
    pub(crate) fn append<T: Serialize>(&mut self, entries: &[T]) -> io::Result<()> {
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let (mut journal, entries) = Journal::open::<u32>(&path).unwrap();
        assert!(entries.is_empty());
        journal.append(&[1, 2]).unwrap();
        journal.append(&[3]).unwrap();
        drop(journal);
        let (_, entries) = Journal::open::<u32>(&path).unwrap();
        assert_eq!(entries, [1, 2, 3]);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_at_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let whole = "[1,10]\n[2,20]\n";
        for end in 0..=whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let (mut journal, before) = Journal::open::<(u32, u32)>(&path).unwrap();
            assert_eq!(before.len(), end / 7, "cut at byte {end}");
            journal.append(&[(3, 30)]).unwrap();
            drop(journal);
            let (_, after) = Journal::open::<(u32, u32)>(&path).unwrap();
            assert_eq!(after, [before, vec![(3, 30)]].concat(), "cut at byte {end}");
        }
    }

    #[test]
    fn nothing_behind_an_unreadable_line_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        std::fs::write(&path, "1\n\u{0}\u{0}\n3\n").unwrap();
        let (_, entries) = Journal::open::<u32>(&path).unwrap();
        assert_eq!(entries, [1]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
    }
}
