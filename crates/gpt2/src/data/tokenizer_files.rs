//! The files that make a tokenizer, from a folder, a single file or a snapshot, and what they say together.
//!
//! Invariant: ids are those of transformers 5.23's `AutoTokenizer.from_pretrained` of the same folder; where that
//! would lose characters without a word, the tokenizer.json counts as it stands, and a note says so. What is carried
//! in snapshots is read back to the same tokenizer. Deliberately not here: the tokenizer's use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ckptd_core::snapshot::CarriedFile;
use ckptd_core::{Error, Result};
use serde_json::{Map, Value, json};
use tokenizers::{PostProcessor, Tokenizer};

use super::added_tokens::{LegacyDocuments, NamedTokens, TokenDocument};
use super::gpt2_tokenizer;
use super::tokenizer::TextEncoder;

const JSON: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIALS: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const MODEL_CONFIG: &str = "config.json";

/// The files that belong to a tokenizer; a template of chats changes no ids.
const NAMES: [&str; 7] = [JSON, CONFIG, SPECIALS, ADDED, VOCAB, MERGES, "chat_template.jinja"];

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 512 << 20;

/// Whether a file of this name belongs to a tokenizer.
pub fn is_tokenizer_file(name: &str) -> bool {
    NAMES.contains(&name)
}

/// The files of one tokenizer.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// Where they come from, for messages.
    origin: PathBuf,
    files: BTreeMap<&'static str, Vec<u8>>,
    /// The config.json beside them.
    model_config: Option<Vec<u8>>,
}

/// What the files come to.
pub struct ReadTokenizer {
    pub encoder: TextEncoder,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

/// Which class of transformers the files are for.
#[derive(Debug, PartialEq, Eq)]
enum TokenizerClass {
    /// It is made anew of vocabulary and merges, whatever else a tokenizer.json says.
    Gpt2,
    /// It is the tokenizer.json.
    Backend,
    /// Has rules of its own.
    Other(String),
}

impl TokenizerFiles {
    /// What lies at `path`: a tokenizer.json under any name, or a folder. `None` where that holds no tokenizer.
    pub fn at(path: &Path) -> Result<Option<TokenizerFiles>> {
        if path.is_file() {
            let files = BTreeMap::from([(JSON, read(path)?)]);
            return Ok(Some(TokenizerFiles { origin: path.to_path_buf(), files, model_config: None }));
        }
        let mut files = BTreeMap::new();
        for name in NAMES.into_iter().filter(|name| path.join(name).is_file()) {
            files.insert(name, read(&path.join(name))?);
        }
        let config = path.join(MODEL_CONFIG);
        let model_config = if config.is_file() { Some(read(&config)?) } else { None };
        Ok(TokenizerFiles { origin: path.to_path_buf(), files, model_config }.complete())
    }

    /// Those among `carried`, the small files of a snapshot or of an import at `origin`.
    pub fn carried(carried: &[CarriedFile], origin: &Path) -> Option<TokenizerFiles> {
        let find = |name: &str| carried.iter().find(|file| file.name == name).map(|file| file.bytes.to_vec());
        let files = NAMES.into_iter().filter_map(|name| Some((name, find(name)?))).collect();
        TokenizerFiles { origin: origin.to_path_buf(), files, model_config: find(MODEL_CONFIG) }.complete()
    }

    fn complete(self) -> Option<TokenizerFiles> {
        let has = |name: &str| self.files.contains_key(name);
        (has(JSON) || has(VOCAB) && has(MERGES)).then_some(self)
    }

    /// Where they come from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The tokenizer.json, where there is one.
    pub fn json(&self) -> Option<&[u8]> {
        self.files.get(JSON).map(Vec::as_slice)
    }

    /// The tokenizer that they make in transformers.
    ///
    /// # Errors
    /// [`Error::Config`] that names the file and the entry that cannot be used.
    pub fn read(&self) -> Result<ReadTokenizer> {
        let config = self.tokens(CONFIG)?;
        let mut notes = Vec::new();
        let mut encoder = match self.class(&config.said)? {
            TokenizerClass::Gpt2 => self.as_gpt2(&config, &mut notes)?,
            TokenizerClass::Other(class) if self.json().is_none() => {
                return Err(Error::Config(format!(
                    "tokenizer {}: tokenizer_class is {class:?}, which has rules of its own, and there is no \
                     {JSON}; write one with `python -c \"from transformers import AutoTokenizer; \
                     AutoTokenizer.from_pretrained('{0}').backend_tokenizer.save('{0}/{JSON}')\"`",
                    self.origin.display()
                )));
            }
            TokenizerClass::Other(class) => {
                notes.push(format!(
                    "{}: the {JSON} is used as it stands; transformers' {class} may add rules of its own",
                    self.origin.display()
                ));
                self.as_it_stands(&config)?
            }
            TokenizerClass::Backend if self.json().is_none() => self.as_gpt2(&config, &mut notes)?,
            TokenizerClass::Backend => self.as_it_stands(&config)?,
        };
        if config.said.get("split_special_tokens").and_then(Value::as_bool) == Some(true) {
            encoder.split_special_tokens();
        }
        let templates = encoder.tokenizer().get_post_processor().map_or(0, |process| process.added_tokens(false));
        if templates > 0 {
            notes.push(format!(
                "{}: its post_processor adds {templates} special tokens to each text; a training text has none of them \
                 (add_special_tokens=False), and the end-of-text token between documents",
                self.origin.display()
            ));
        }
        Ok(ReadTokenizer { encoder, notes })
    }

    /// The tokenizer.json that the first release made of these files: as it stands, or of vocabulary and merges alone.
    pub(super) fn first_release_json(&self) -> Option<Vec<u8>> {
        if let Some(json) = self.json() {
            return Some(json.to_vec());
        }
        gpt2_tokenizer::first_release(self.files.get(VOCAB)?, self.files.get(MERGES)?).ok()
    }

    /// The files for a snapshot, which say that they are `encoder` also beside a GPT-2's config.json.
    pub(super) fn for_snapshot(&self, encoder: &TextEncoder) -> Vec<CarriedFile> {
        let mut carried = self.clone();
        carried.files.insert(JSON, encoder.json().to_vec());
        carried.model_config = Some(br#"{"model_type": "gpt2"}"#.to_vec());
        let reads_back = carried.read().is_ok_and(|read| read.encoder.is_same(encoder));
        if !reads_back {
            let mut config = self.object(CONFIG).unwrap_or_default();
            config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
            if let Some(end) = encoder.named_end_of_text() {
                config.insert("eos_token".into(), json!(end));
            }
            carried.files.insert(CONFIG, format!("{:#}\n", Value::Object(config)).into_bytes());
        }
        let file = |(name, bytes): (&str, Vec<u8>)| CarriedFile { name: name.into(), bytes: bytes.into() };
        let (first, rest): (Vec<_>, Vec<_>) = carried.files.into_iter().partition(|(name, _)| *name == JSON);
        first.into_iter().chain(rest).map(file).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        if self.origin.is_file() { self.origin.clone() } else { self.origin.join(name) }
    }

    /// The JSON object in the file `name`; an empty one where it is missing.
    fn object(&self, name: &str) -> Result<Map<String, Value>> {
        let Some(bytes) = self.files.get(name) else { return Ok(Map::new()) };
        serde_json::from_slice(bytes)
            .map_err(|e| Error::Config(format!("{}: not a JSON object: {e}", self.path(name).display())))
    }

    /// The JSON object in the file `name`, with the order of its tokens.
    fn tokens(&self, name: &str) -> Result<TokenDocument> {
        let said = self.object(name)?;
        // It has been read once.
        let order = self.files.get(name).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        Ok(TokenDocument { said, order })
    }

    /// As AutoTokenizer chooses it.
    fn class(&self, config: &Map<String, Value>) -> Result<TokenizerClass> {
        let model =
            self.model_config.as_deref().and_then(|json| serde_json::from_slice::<Map<String, Value>>(json).ok());
        let model = model.unwrap_or_default();
        let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let class = text(config, "tokenizer_class").or_else(|| text(&model, "tokenizer_class"));
        Ok(match class.as_deref().map(|class| class.strip_suffix("Fast").unwrap_or(class)) {
            Some("GPT2Tokenizer") => TokenizerClass::Gpt2,
            Some("PreTrainedTokenizer" | "TokenizersBackend" | "BloomTokenizer") => TokenizerClass::Backend,
            Some(_) => TokenizerClass::Other(class.clone().unwrap_or_default()),
            None if text(&model, "model_type").as_deref() == Some("gpt2") => TokenizerClass::Gpt2,
            None => TokenizerClass::Backend,
        })
    }

    fn as_it_stands(&self, config: &TokenDocument) -> Result<TextEncoder> {
        let json = self.json().unwrap_or_default();
        let refuse = |e| Error::Config(format!("tokenizer {}: not a {JSON}: {e}", self.path(JSON).display()));
        let tokenizer = Tokenizer::from_bytes(json).map_err(refuse)?;
        let named = NamedTokens::of(config, self.legacy()?, false);
        self.finish(tokenizer, &named, Some(json))
    }

    /// The documents of earlier transformers; a tokenizer_config.json with added_tokens_decoder takes their place.
    fn legacy(&self) -> Result<LegacyDocuments> {
        let json = match self.json() {
            Some(json) => serde_json::from_slice::<Value>(json).unwrap_or_default(),
            None => Value::Null,
        };
        let added = json.get("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok((self.tokens(SPECIALS)?, self.object(ADDED)?, added))
    }

    /// Adds the tokens that the tokenizer lacks. `json` is kept to the byte where nothing is added to it.
    fn finish(&self, mut tokenizer: Tokenizer, named: &NamedTokens, json: Option<&[u8]>) -> Result<TextEncoder> {
        let refuse = |e| Error::Config(format!("tokenizer {}: {e}", self.origin.display()));
        let known: Vec<_> = tokenizer.get_added_tokens_decoder().values().cloned().collect();
        let missing = named.missing(&known);
        let has_news = !missing.is_empty();
        tokenizer.add_tokens(missing).map_err(refuse)?;
        let json = match json {
            Some(json) if !has_news => json.to_vec(),
            _ => tokenizer.to_string(false).map_err(refuse)?.into_bytes(),
        };
        Ok(TextEncoder::new(tokenizer, json, named.end_of_text()))
    }

    /// transformers' GPT2Tokenizer: byte-level BPE of the vocabulary and the merges.
    fn as_gpt2(&self, config: &TokenDocument, notes: &mut Vec<String>) -> Result<TextEncoder> {
        let refuse = |e| Error::Config(format!("tokenizer {}: {e}", self.origin.display()));
        let prefix = config.said.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
        let named = NamedTokens::of(config, self.legacy()?, true);
        let Some(json) = self.json() else {
            let (vocab, merges) = (&self.files[VOCAB], &self.files[MERGES]);
            let tokenizer = gpt2_tokenizer::from_vocab(vocab, merges, prefix)
                .map_err(|what| Error::Config(format!("tokenizer {}: {what}", self.origin.display())))?;
            return self.finish(tokenizer, &named, None);
        };
        let as_it_stands = self.as_it_stands(config)?;
        let Some(tokenizer) = gpt2_tokenizer::from_json(json, prefix).map_err(refuse)? else {
            notes.push(self.explain("is no byte-level BPE, and transformers would lose its characters", "is used"));
            return Ok(as_it_stands);
        };
        let made = self.finish(tokenizer, &named, None)?;
        let differences = gpt2_tokenizer::differences(as_it_stands.tokenizer(), made.tokenizer());
        match differences.as_slice() {
            [] => Ok(as_it_stands.with_end_of_text(named.end_of_text())),
            // What the specials add is no loss.
            [only] if only == "added_tokens" => Ok(made),
            differences => {
                let what = format!("has another {} than transformers gives it", differences.join(", "));
                notes.push(self.explain(&what, "is not used, so that the ids are those of transformers"));
                Ok(made)
            }
        }
    }

    /// Where a GPT2Tokenizer and the tokenizer.json are not the same.
    fn explain(&self, what: &str, used: &str) -> String {
        format!(
            "{}: transformers takes it for a GPT2Tokenizer; the {JSON} {what}, and {used}. To use it as it stands, \
             write {{\"tokenizer_class\": \"PreTrainedTokenizerFast\"}} into {CONFIG}, or name the file itself: [data] \
             tokenizer = \"{}\"",
            self.origin.display(),
            self.path(JSON).display()
        )
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |e| Error::io("reading tokenizer", path, e);
    let bytes = std::fs::metadata(path).map_err(fail)?.len();
    if bytes > MAX_BYTES {
        return Err(Error::Config(format!(
            "tokenizer {}: {bytes} bytes are too many; at most {MAX_BYTES} are read",
            path.display()
        )));
    }
    std::fs::read(path).map_err(fail)
}
