//! A disk: a tree of folders and files in memory, and the smallest changes of it.
//!
//! Deliberately not here: which changes a power loss leaves (power_loss).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

pub type Inode = usize;
pub const ROOT: Inode = 0;

#[derive(Clone, Debug)]
pub enum DiskNode {
    Folder(BTreeMap<String, Inode>),
    File(Arc<Vec<u8>>),
}

/// A tree of folders and files below a folder that stands for the disk.
#[derive(Clone, Debug)]
pub struct DiskState {
    pub(crate) nodes: HashMap<Inode, DiskNode>,
}

/// The smallest change that reaches the disk or does not.
#[derive(Clone, Debug)]
pub enum DiskChange {
    Make {
        inode: Inode,
        folder: bool,
        dir: Inode,
        name: String,
    },
    Link {
        inode: Inode,
        dir: Inode,
        name: String,
    },
    Unlink {
        dir: Inode,
        name: String,
    },
    /// A rename within a folder is one change.
    Replace {
        inode: Inode,
        dir: Inode,
        from: String,
        to: String,
    },
    Write {
        inode: Inode,
        offset: u64,
        bytes: Arc<Vec<u8>>,
    },
    Cut {
        inode: Inode,
        bytes: u64,
    },
}

impl DiskState {
    pub fn empty() -> DiskState {
        DiskState { nodes: HashMap::from([(ROOT, DiskNode::Folder(BTreeMap::new()))]) }
    }

    /// Reads what lies under `root`.
    pub fn load(root: &Path) -> std::io::Result<DiskState> {
        let mut disk = DiskState::empty();
        disk.load_folder(root, ROOT)?;
        Ok(disk)
    }

    fn load_folder(&mut self, path: &Path, inode: Inode) -> std::io::Result<()> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let new = self.nodes.len();
            let folder = entry.file_type()?.is_dir();
            let node = if folder {
                DiskNode::Folder(BTreeMap::new())
            } else {
                DiskNode::File(Arc::new(std::fs::read(entry.path())?))
            };
            self.nodes.insert(new, node);
            self.names(inode).insert(entry.file_name().to_string_lossy().into_owned(), new);
            if folder {
                self.load_folder(&entry.path(), new)?;
            }
        }
        Ok(())
    }

    /// Writes the tree into the folder `root`, which is there and empty.
    pub fn lay_out(&self, root: &Path) -> std::io::Result<()> {
        self.walk(ROOT, root, &mut |path, node| match node {
            DiskNode::Folder(_) => std::fs::create_dir(path),
            DiskNode::File(bytes) => std::fs::write(path, bytes.as_slice()),
        })
    }

    /// A hash of all names and contents.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let walked = self.walk(ROOT, Path::new(""), &mut |path, node| {
            let path = path.as_os_str().as_encoded_bytes();
            hasher.update(&(path.len() as u64).to_le_bytes()).update(path);
            match node {
                DiskNode::Folder(_) => hasher.update(b"/"),
                DiskNode::File(bytes) => hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
            };
            Ok(())
        });
        debug_assert!(walked.is_ok(), "nothing in there fails");
        hasher.finalize()
    }

    pub fn walk(
        &self,
        inode: Inode,
        path: &Path,
        visit: &mut dyn FnMut(&Path, &DiskNode) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let Some(DiskNode::Folder(names)) = self.nodes.get(&inode) else { return Ok(()) };
        for (name, inode) in names {
            let path = path.join(name);
            if let Some(node) = self.nodes.get(inode) {
                visit(&path, node)?;
                self.walk(*inode, &path, visit)?;
            }
        }
        Ok(())
    }

    fn names(&mut self, inode: Inode) -> &mut BTreeMap<String, Inode> {
        let node = self.nodes.entry(inode).or_insert_with(|| DiskNode::Folder(BTreeMap::new()));
        if !matches!(node, DiskNode::Folder(_)) {
            *node = DiskNode::Folder(BTreeMap::new());
        }
        match node {
            DiskNode::Folder(names) => names,
            DiskNode::File(_) => unreachable!("made a folder above"),
        }
    }

    fn content(&mut self, inode: Inode) -> &mut Vec<u8> {
        let node = self.nodes.entry(inode).or_insert_with(|| DiskNode::File(Arc::default()));
        if !matches!(node, DiskNode::File(_)) {
            *node = DiskNode::File(Arc::default());
        }
        match node {
            DiskNode::File(bytes) => Arc::make_mut(bytes),
            DiskNode::Folder(_) => unreachable!("made a file above"),
        }
    }

    pub fn apply(&mut self, change: &DiskChange) {
        match change {
            DiskChange::Make { inode, folder, dir, name } => {
                if *folder {
                    self.names(*inode).len()
                } else {
                    self.content(*inode).len()
                };
                self.names(*dir).insert(name.clone(), *inode);
            }
            DiskChange::Link { inode, dir, name } => {
                self.names(*dir).insert(name.clone(), *inode);
            }
            DiskChange::Unlink { dir, name } => {
                self.names(*dir).remove(name);
            }
            DiskChange::Replace { inode, dir, from, to } => {
                self.names(*dir).remove(from);
                self.names(*dir).insert(to.clone(), *inode);
            }
            DiskChange::Write { inode, offset, bytes } => self.write(*inode, *offset, bytes),
            DiskChange::Cut { inode, bytes } => self.content(*inode).resize(*bytes as usize, 0),
        }
    }

    pub fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) {
        let content = self.content(inode);
        let end = offset as usize + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(bytes);
    }
}
