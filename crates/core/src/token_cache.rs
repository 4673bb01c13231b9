//! The cache folder of a job's tokens: the names of its files, and the documents in them.
//!
//! Invariant: what is known about a file is believed without reading it only while its stamp is the same. Files of the
//! cache cost nothing but time where they are missing, and may be deleted.
//! Deliberately not here: making tokens (the worker), writing files (`os`).

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::os::stamp::FileStamp;

/// Bytes of one token id in a token file, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenWidth {
    /// 2 bytes.
    U16,
    /// 4 bytes.
    U32,
    /// 4 bytes, signed; in files from elsewhere only.
    I32,
    /// 8 bytes, signed; in files from elsewhere only.
    I64,
}

impl TokenWidth {
    /// u16 while every id of a vocabulary of this size fits, else u32.
    pub fn for_vocab(vocab_size: u64) -> TokenWidth {
        if vocab_size <= 1 << 16 { TokenWidth::U16 } else { TokenWidth::U32 }
    }

    /// Bytes of one id.
    pub const fn bytes(self) -> usize {
        match self {
            TokenWidth::U16 => 2,
            TokenWidth::U32 | TokenWidth::I32 => 4,
            TokenWidth::I64 => 8,
        }
    }

    /// By numpy's name, as `[data] tokens_dtype` has it.
    pub const fn numpy(self) -> &'static str {
        match self {
            TokenWidth::U16 => "uint16",
            TokenWidth::U32 => "uint32",
            TokenWidth::I32 => "int32",
            TokenWidth::I64 => "int64",
        }
    }
}

/// What a full reading of a token file found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// BLAKE3 of the file, as hex.
    pub blake3: String,
    /// Number of ids.
    pub tokens: u64,
    /// Largest id; 0 in an empty file.
    pub max_id: u32,
    /// Where it stands first, counted in ids.
    pub max_at: u64,
}

/// The texts that tokens were made of, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextSummary {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Name and BLAKE3 of the first of them, at most [`TextSummary::MOST_NAMES`].
    pub names: Vec<(String, String)>,
}

impl TextSummary {
    /// So that the document stays small.
    pub const MOST_NAMES: usize = 500;
}

/// What is remembered of a token file, as a JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Bytes of one id.
    pub width: TokenWidth,
    /// `None`: it had changed too recently to be recognised.
    pub stamp: Option<FileStamp>,
    /// What was found in the file with that stamp.
    pub facts: TokenFacts,
    /// What the tokens were made of, where they were made here; earlier releases did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextSummary>,
}

/// What is remembered of one text file, as a JSON document with its list's other files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextRecord {
    /// `None`: it had changed too recently to be recognised.
    pub stamp: Option<FileStamp>,
    /// BLAKE3 of the file, as hex.
    pub blake3: String,
}

/// The document beside exported tokens that were made of text: they stand for that text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenOrigin {
    /// BLAKE3 of the token file, as hex.
    pub blake3: String,
    /// The hash that stands for the texts, as the settings of a training hold it.
    pub content: String,
    /// Bytes of one id.
    pub width: TokenWidth,
}

impl TokenOrigin {
    /// Where the document about the token file at `tokens` lies: `<tokens>.json`.
    pub fn path(tokens: &Path) -> PathBuf {
        let mut name = tokens.as_os_str().to_owned();
        name.push(".json");
        PathBuf::from(name)
    }
}

/// The names in a cache folder.
#[derive(Clone, Debug)]
pub struct TokenCache {
    folder: PathBuf,
}

impl TokenCache {
    /// The cache in `folder`, which need not exist.
    pub fn new(folder: &Path) -> TokenCache {
        TokenCache { folder: folder.to_path_buf() }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether `content`, which may come from anywhere, is a plain name: then what is named by it lies in the cache.
    pub fn is_name(content: &str) -> bool {
        (1..=128).contains(&content.len()) && content.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }

    /// The tokens of the text with the hash `content`.
    pub fn tokens(&self, content: &str) -> PathBuf {
        self.folder.join(format!("tokens-{content}.bin"))
    }

    /// The [`TokenRecord`] of the tokens of the text with the hash `content`.
    pub fn tokens_record(&self, content: &str) -> PathBuf {
        self.tokens(content).with_extension("json")
    }

    /// The [`TokenRecord`] of a token file from elsewhere.
    pub fn file_record(&self, tokens: &Path) -> PathBuf {
        let id = blake3::hash(tokens.as_os_str().as_bytes()).to_hex();
        self.folder.join(format!("file-{}.json", &id[..16]))
    }

    /// The [`TextRecord`]s of a list of text files, in its order.
    pub fn texts_record(&self, texts: &[PathBuf]) -> PathBuf {
        let mut list = blake3::Hasher::new();
        for path in texts {
            list.update(path.as_os_str().as_bytes()).update(&[0]);
        }
        self.folder.join(format!("seen-{}.json", &list.finalize().to_hex()[..16]))
    }

    /// The tokenizer that was trained under `key`, as a tokenizer.json.
    pub fn tokenizer(&self, key: &str) -> PathBuf {
        self.folder.join(format!("tokenizer-{key}.json"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_documents_are_those_of_the_first_release() {
        let cache = TokenCache::new(Path::new("/c"));
        assert_eq!(cache.tokens("ab12"), Path::new("/c/tokens-ab12.bin"));
        assert_eq!(cache.tokens_record("ab12"), Path::new("/c/tokens-ab12.json"));
        assert_eq!(cache.tokenizer("k"), Path::new("/c/tokenizer-k.json"));
        assert_eq!(TokenOrigin::path(Path::new("/x/t.bin")), Path::new("/x/t.bin.json"));
        let origin = TokenOrigin { blake3: "b".into(), content: "c".into(), width: TokenWidth::U16 };
        let json = serde_json::to_string(&origin).unwrap();
        assert_eq!(json, r#"{"blake3":"b","content":"c","width":"u16"}"#);
        assert_eq!(serde_json::from_str::<TokenOrigin>(&json).unwrap(), origin);
    }
}
