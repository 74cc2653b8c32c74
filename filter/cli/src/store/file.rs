//! A document in a file, replaced as a whole.

use std::any::Any;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Backend, Fault, Held, MOST_BYTES, Version};

/// How long somebody else may have the lock.
const MOST_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct FileStore {
    path: PathBuf,
}

impl FileStore {
    pub(super) fn new(path: &str) -> Self {
        // Not the link is replaced, but what it leads to.
        let path = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
        Self { path }
    }

    /// A hidden file beside it.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(ending);
        self.path.with_file_name(name)
    }

    fn replace_by(&self, document: &[u8]) -> std::io::Result<()> {
        let new = self.beside(".new");
        let written = (|| {
            let mut file = File::create(&new)?;
            if let Ok(old) = fs::metadata(&self.path) {
                file.set_permissions(old.permissions())?;
            }
            file.write_all(document)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written?;
        // So that a crash does not bring the old one back. Not every system can.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let _ = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Backend for FileStore {
    fn lock(&self) -> Result<Box<dyn Any>, Fault> {
        let begin = Instant::now();
        let fault = |error: std::io::Error| Fault::lasting(error.to_string());
        // Not the document itself: it is replaced, and the lock would stay with the old one.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.beside(".lock"))
            .map_err(fault)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Box::new(file)),
                Err(TryLockError::WouldBlock) if begin.elapsed() < MOST_WAIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Fault::lasting("somebody else has it locked"));
                }
                Err(TryLockError::Error(error)) => return Err(fault(error)),
            }
        }
    }

    fn read(&self) -> Result<Held, Fault> {
        let mut document = Vec::new();
        let most = MOST_BYTES as u64;
        let read = File::open(&self.path)
            .and_then(|file| file.take(most.saturating_add(1)).read_to_end(&mut document));
        match read {
            Ok(_) if document.len() > MOST_BYTES => {
                Err(Fault::lasting(format!("is larger than {MOST_BYTES} bytes")))
            }
            Ok(_) => {
                Ok(Held { version: Version::Whole(document.clone()), document: Some(document) })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Held { document: None, version: Version::Absent })
            }
            Err(error) => Err(Fault::lasting(error.to_string())),
        }
    }

    /// Under the lock; an editor that does not know of it is found out all the same, but for an instant.
    fn replace(&self, version: &Version, document: &[u8]) -> Result<bool, Fault> {
        if self.read()?.version != *version {
            return Ok(false);
        }
        self.replace_by(document).map(|()| true).map_err(|error| Fault::lasting(error.to_string()))
    }
}
