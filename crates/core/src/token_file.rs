//! How the ids of a token file from elsewhere lie in it, as far as the file says it itself.
//!
//! Known are numpy's `.npy` and the header of llm.c and modded-nanogpt (256 int32, the first of them 20240520 or
//! 20240801). A file of nothing but ids says nothing: that is for the job, or for the file's own values, to tell.
//!
//! Invariant: every number that is read is held against the file's size. Deliberately not here: reading ids (the
//! worker).

use serde::{Deserialize, Serialize};

use crate::token_cache::TokenWidth;

/// `[data] tokens_dtype`: the type of the ids in a file that does not say it, by numpy's name. Little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokensDtype {
    /// 2 bytes.
    Uint16,
    /// 4 bytes.
    Uint32,
    /// 4 bytes, signed.
    Int32,
    /// 8 bytes, signed.
    Int64,
}

impl TokensDtype {
    /// The same as it stands in the cache's documents.
    pub const fn width(self) -> TokenWidth {
        match self {
            TokensDtype::Uint16 => TokenWidth::U16,
            TokensDtype::Uint32 => TokenWidth::U32,
            TokensDtype::Int32 => TokenWidth::I32,
            TokensDtype::Int64 => TokenWidth::I64,
        }
    }
}

/// Where the ids of a file are, and of which type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLayout {
    /// The type of each id.
    pub width: TokenWidth,
    /// Bytes before the first id.
    pub offset: u64,
    /// Number of ids.
    pub tokens: u64,
}

impl TokenLayout {
    /// A file of `bytes` bytes that holds nothing but ids.
    ///
    /// # Errors
    /// As a clause, where the size is no whole number of ids.
    pub fn plain(width: TokenWidth, bytes: u64) -> Result<TokenLayout, String> {
        let size = width.bytes() as u64;
        if bytes.is_multiple_of(size) {
            Ok(TokenLayout { width, offset: 0, tokens: bytes / size })
        } else {
            Err(format!("{bytes} bytes are no whole number of {size}-byte ids ({})", width.numpy()))
        }
    }

    /// What stands for the tokens of a file with this BLAKE3. A file that holds nothing but ids stands for itself.
    pub fn content(&self, blake3: &str) -> String {
        if self.offset == 0 && matches!(self.width, TokenWidth::U16 | TokenWidth::U32) {
            return blake3.to_owned();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"ckptd token file ");
        hasher.update(format!("{} {} {blake3}", self.width.numpy(), self.offset).as_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

const NPY_MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of llm.c's header.
const LLM_C_BYTES: u64 = 1024;
/// The first and the second number of llm.c's header, and the type of the ids after it.
const LLM_C: [(u32, u32, TokenWidth); 2] = [(20_240_520, 1, TokenWidth::U16), (20_240_801, 7, TokenWidth::U32)];

/// What else begins so, and what to do with it.
const OTHERS: [(&[u8], &str); 7] = [
    (b"PK\x03\x04", "a zip archive (.npz, .pt); save the ids alone with numpy.save"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with unzstd"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it with unxz"),
    (b"PAR1", "Parquet; save its ids with numpy.save"),
    (b"\x89HDF\r\n", "HDF5; save the ids alone with numpy.save"),
    (b"MMIDIDX\0", "the index of Megatron's tokens; name the .bin beside it, with [data] tokens_dtype"),
];

/// The layout that the header of `file` gives; `None` where it has none.
///
/// # Errors
/// As a clause: a header that does not fit its file, a type that is no id's.
pub fn from_header(file: &[u8]) -> Result<Option<TokenLayout>, String> {
    if file.starts_with(NPY_MAGIC) { npy(file).map(Some) } else { llm_c(file) }
}

/// Which other kind of file it seems to be, and what to do with it. Ids may begin so by chance.
pub fn other_kind(file: &[u8]) -> Option<&'static str> {
    let known = OTHERS.iter().find(|(magic, _)| file.starts_with(magic)).map(|(_, what)| *what);
    known.or_else(|| is_text(file).then_some("text; name it in [data] text"))
}

/// Whether the file begins with a page of plain text, which 2-byte ids of a usual vocabulary could be.
fn is_text(file: &[u8]) -> bool {
    const LEAST_BYTES: usize = 64;
    const SAMPLE_BYTES: usize = 4096;
    let is_letter = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    file.len() >= LEAST_BYTES && file.iter().take(SAMPLE_BYTES).all(is_letter)
}

fn llm_c(file: &[u8]) -> Result<Option<TokenLayout>, String> {
    let number = |index: usize| {
        let bytes = file.get(4 * index..4 * index + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let known = LLM_C.iter().find(|(magic, ..)| number(0) == Some(*magic));
    let Some(&(magic, version, width)) = known else { return Ok(None) };
    let (Some(has), Some(tokens)) = (number(1), number(2)) else { return Ok(None) };
    if has != version {
        return Err(format!(
            "its header is llm.c's ({magic}) of version {has}; known is version {version}; write it anew with llm.c's \
             data scripts"
        ));
    }
    let tokens = u64::from(tokens);
    sized(file, width, LLM_C_BYTES, tokens).map(Some)
}

/// Ids that must fill the rest of the file.
fn sized(file: &[u8], width: TokenWidth, offset: u64, tokens: u64) -> Result<TokenLayout, String> {
    let expected = tokens.checked_mul(width.bytes() as u64).and_then(|bytes| bytes.checked_add(offset));
    if expected == Some(file.len() as u64) {
        return Ok(TokenLayout { width, offset, tokens });
    }
    Err(format!(
        "its header says {tokens} ids of {}, which takes {} bytes, and the file has {}; is it cut, or not \
         complete yet?",
        width.numpy(),
        expected.map_or("too many".to_owned(), |bytes| bytes.to_string()),
        file.len()
    ))
}

/// See numpy.lib.format: magic, version, the header's length, and a Python dict of descr, fortran_order and shape.
fn npy(file: &[u8]) -> Result<TokenLayout, String> {
    let broken = || "its .npy header cannot be read; save it again with numpy.save".to_owned();
    let (length, start): (usize, usize) = match *file.get(6..12).ok_or_else(broken)? {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([a, b])), 10),
        [2 | 3, _, a, b, c, d] => (u32::from_le_bytes([a, b, c, d]) as usize, 12),
        _ => return Err(broken()),
    };
    let header = start.checked_add(length).and_then(|end| file.get(start..end)).ok_or_else(broken)?;
    let header = std::str::from_utf8(header).map_err(|_| broken())?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = after("descr").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next()).ok_or_else(broken)?;
    let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next()).ok_or_else(broken)?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let sizes: Vec<u64> = sizes.map(|size| size.parse().map_err(|_| broken())).collect::<Result<_, _>>()?;
    let tokens = sizes.iter().try_fold(1u64, |all, &size| all.checked_mul(size)).ok_or_else(broken)?;
    let is_columns = after("fortran_order").is_some_and(|rest| rest.starts_with("True"));
    if is_columns && sizes.len() > 1 {
        return Err(format!("its array of the shape ({shape}) lies column by column; save numpy.ravel of it"));
    }
    let width = match descr {
        "<u2" => TokenWidth::U16,
        "<u4" => TokenWidth::U32,
        "<i4" => TokenWidth::I32,
        "<i8" => TokenWidth::I64,
        // Ids are not negative and below 2^32, so that the sign makes no difference to those that are valid.
        "<u8" => TokenWidth::I64,
        _ => {
            return Err(format!(
                "its array is of the type {descr:?}; ids are little-endian uint16, uint32, int32 or int64: save \
                 array.astype('<i4')"
            ));
        }
    };
    sized(file, width, (start + length) as u64, tokens)
}

/// Whether ids of `width` in `file` look like the halves of wider ones: nearly every second is nothing but zeros or a
/// sign.
pub fn looks_wider(file: &[u8], width: TokenWidth) -> bool {
    const SAMPLE_BYTES: usize = 8 << 20;
    let size = width.bytes();
    if size > 4 || !file.len().is_multiple_of(2 * size) || file.is_empty() {
        return false;
    }
    let pairs = file[..file.len().min(SAMPLE_BYTES)].chunks_exact(2 * size);
    let total = pairs.len();
    let is_half = |half: &[u8]| half.iter().all(|&byte| byte == 0) || half.iter().all(|&byte| byte == 0xff);
    let halves = pairs.filter(|pair| is_half(&pair[size..])).count();
    halves as u128 * 10 >= total as u128 * 9
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn npy_file(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    fn llm_c_file(magic: u32, version: u32, tokens: u32, data: &[u8]) -> Vec<u8> {
        let mut file: Vec<u8> = [magic, version, tokens].iter().flat_map(|number| number.to_le_bytes()).collect();
        file.resize(1024, 0);
        file.extend(data);
        file
    }

    #[test]
    fn arrays_and_headers_say_what_they_hold() {
        let layout = |file: &[u8]| from_header(file).unwrap().unwrap();
        for (descr, width) in
            [("<u2", TokenWidth::U16), ("<u4", TokenWidth::U32), ("<i4", TokenWidth::I32), ("<i8", TokenWidth::I64)]
        {
            let file = npy_file(descr, "(2, 3)", &vec![0; 6 * width.bytes()]);
            let offset = (file.len() - 6 * width.bytes()) as u64;
            assert_eq!(layout(&file), TokenLayout { width, offset, tokens: 6 });
        }
        let file = llm_c_file(20_240_520, 1, 3, &[0; 6]);
        assert_eq!(layout(&file), TokenLayout { width: TokenWidth::U16, offset: 1024, tokens: 3 });
        let file = llm_c_file(20_240_801, 7, 3, &[0; 12]);
        assert_eq!(layout(&file), TokenLayout { width: TokenWidth::U32, offset: 1024, tokens: 3 });
        assert_eq!(from_header(&[7; 2000]), Ok(None));
        assert_eq!(from_header(b""), Ok(None));
    }

    #[test]
    fn a_header_that_does_not_fit_its_file_is_refused_with_the_reason() {
        for (file, reason) in [
            (npy_file("<i4", "(3,)", &[0; 11]), "takes"),
            (npy_file(">i4", "(3,)", &[0; 12]), "\">i4\""),
            (npy_file("<f8", "(1,)", &[0; 8]), "\"<f8\""),
            (npy_file("<u2", "(18446744073709551615, 4)", &[]), "cannot be read"),
            (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "cannot be read"),
            (llm_c_file(20_240_520, 1, 4, &[0; 6]), "says 4 ids"),
            (llm_c_file(20_240_520, 9, 3, &[0; 6]), "version 9"),
        ] {
            let error = from_header(&file).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(other_kind(b"PK\x03\x04....").unwrap().contains("zip archive"));
        assert!(other_kind(b"PAR1....").unwrap().contains("Parquet"));
        assert!(other_kind("The cat, and so on.\r\n".repeat(4).as_bytes()).unwrap().contains("[data] text"));
        assert_eq!(other_kind(&[7; 99]), None);
        assert_eq!(other_kind(&[b'a'; 63]), None);
    }

    #[test]
    fn halves_of_wider_ids_are_noticed_and_narrow_ids_are_not_taken_for_them() {
        let ids: Vec<u16> = (0..4000u32).map(|i| (i * 7919 % 50_257) as u16).collect();
        let narrow: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let wide: Vec<u8> = ids.iter().flat_map(|&id| i32::from(id).to_le_bytes()).collect();
        let wider: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
        assert!(!looks_wider(&narrow, TokenWidth::U16));
        assert!(looks_wider(&wide, TokenWidth::U16) && looks_wider(&wider, TokenWidth::U16));
        assert!(!looks_wider(&wide, TokenWidth::U32) && looks_wider(&wider, TokenWidth::U32));
        let mut damaged = wide;
        damaged[6] = 3;
        assert!(looks_wider(&damaged, TokenWidth::U16), "one id that is no id changes nothing");
    }

    #[test]
    fn a_file_of_ids_alone_stands_for_itself_and_any_other_for_its_reading() {
        let layout = |width, offset| TokenLayout { width, offset, tokens: 1 };
        assert_eq!(layout(TokenWidth::U16, 0).content("ab"), "ab");
        assert_eq!(layout(TokenWidth::U32, 0).content("ab"), "ab");
        let others = [layout(TokenWidth::I64, 0), layout(TokenWidth::I32, 0), layout(TokenWidth::U16, 1024)];
        let contents: std::collections::BTreeSet<String> = others.iter().map(|layout| layout.content("ab")).collect();
        assert!(contents.len() == 3 && contents.iter().all(|content| content.len() == 64));
    }
}
