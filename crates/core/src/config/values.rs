//! Whether a value is one that its key takes, and what to write where it is not.
//!
//! Invariant: a correction fits; it keeps what the user meant where that can be told. Deliberately not here: what a key
//! takes (`keys`).

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use toml::de::{DeTable, DeValue};

use super::hooks::HookMoment;
use super::keys::{KeySpec, OmittedEnd, ValueKind};
use crate::text::{ByteSize, TextValue, exact_duration, parse_duration};

/// "must be ...", where `value` is not what `kind` takes.
pub(super) fn misfit(kind: &ValueKind, value: &DeValue<'_>) -> Option<String> {
    (!fits(kind, value)).then(|| format!("must be {}", kind.allowed()))
}

fn fits(kind: &ValueKind, value: &DeValue<'_>) -> bool {
    match *kind {
        ValueKind::Whole { least, most } => {
            whole(value).is_some_and(|n| (i128::from(least)..=i128::from(most.min(i64::MAX as u64))).contains(&n))
        }
        ValueKind::WholeOr { least, most, or } => {
            text(value) == Some(or) || fits(&ValueKind::Whole { least, most }, value)
        }
        ValueKind::Number { least, most, open } => number(value).is_some_and(|x| {
            let above = if open == OmittedEnd::Least { x > least } else { x >= least };
            let below = if open == OmittedEnd::Most { x < most } else { x <= most };
            x.is_finite() && above && below
        }),
        ValueKind::Shares => match value {
            DeValue::Array(items) if items.len() == 2 => {
                items.iter().all(|item| number(item.as_ref()).is_some_and(|x| (0.0..1.0).contains(&x)))
            }
            _ => false,
        },
        ValueKind::Bool => matches!(value, DeValue::Boolean(_)),
        ValueKind::Text | ValueKind::Path => text(value).is_some(),
        ValueKind::Texts => {
            matches!(value, DeValue::Array(items) if items.iter().all(|item| text(item.as_ref()).is_some()))
        }
        ValueKind::Choice(texts) => text(value).is_some_and(|text| texts.contains(&text)),
        ValueKind::ChoiceOrTexts(texts) => match value {
            DeValue::Array(items) => !items.is_empty() && fits(&ValueKind::Texts, value),
            _ => text(value).is_some_and(|text| texts.contains(&text)),
        },
        ValueKind::Device => text(value).is_some_and(is_device),
        ValueKind::Duration { least, most, or } => text(value).is_some_and(|text| {
            or == Some(text) || parse_duration(text).is_ok_and(|d| d >= least && d > Duration::ZERO && d <= most)
        }),
        ValueKind::Moment => text(value).and_then(read::<TextValue<Timestamp>>).is_some(),
        ValueKind::Size { least, or } => text(value)
            .is_some_and(|text| or.contains(&text) || read::<ByteSize>(text).is_some_and(|size| size.0 >= least)),
        ValueKind::Url => text(value).is_some_and(|text| text.starts_with("http://")),
        ValueKind::Remote => text(value).is_some_and(is_remote),
        ValueKind::Service => text(value).is_some_and(is_service),
        ValueKind::Listen => text(value).is_some_and(|text| text.parse::<SocketAddr>().is_ok()),
        ValueKind::Hooks => match value {
            DeValue::Table(table) => table.iter().all(|(name, command)| {
                let is_command = fits(&ValueKind::Texts, command.get_ref());
                let is_empty = matches!(command.get_ref(), DeValue::Array(items) if items.is_empty());
                HookMoment::NAMES.contains(&name.get_ref().as_ref()) && is_command && !is_empty
            }),
            _ => false,
        },
        ValueKind::ShareOr(texts) => text(value).is_some_and(|text| {
            texts.contains(&text) || text.parse::<f64>().is_ok_and(|share| share > 0.0 && share < 1.0)
        }),
    }
}

/// `text` read as a `T`, as in the file.
fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    let deserializer: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(deserializer).ok()
}

/// Whether `text` is the address of a remote, as far as that can be told without its store: no credential is in it.
fn is_remote(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let is_known = ["s3", "gs", "az", "sftp", "file"].contains(&scheme);
    is_known && !rest.is_empty() && !holds_secret(text) && (scheme == "sftp" || !rest.contains('@'))
}

/// Whether `text` is the address of a service that is reached by HTTP: no credential is in it.
fn is_service(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(['@', '?', '#', ' ']))
}

/// Whether an address in `text` may hold a credential: what stands between "//" and "@" with a colon in it, or a query.
pub(super) fn holds_secret(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| {
        let authority = rest.split('/').next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) || rest.contains('?')
    })
}

fn is_device(text: &str) -> bool {
    matches!(text, "auto" | "cpu" | "cuda") || text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u8>().is_ok())
}

fn whole(value: &DeValue<'_>) -> Option<i128> {
    match value {
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
        _ => None,
    }
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        value => whole(value).map(|n| n as f64),
    }
}

fn text<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

/// The line that `spec` takes in the place of `value`: what was meant, or an example.
pub(super) fn correct(spec: &KeySpec, value: &DeValue<'_>) -> String {
    let meant = meant(&spec.kind, value).filter(|meant| {
        let line = format!("x = {meant}");
        let table = DeTable::parse(&line);
        table.is_ok_and(|table| table.get_ref().get("x").is_some_and(|value| fits(&spec.kind, value.get_ref())))
    });
    format!("{} = {}", spec.key, meant.as_deref().unwrap_or(spec.example))
}

/// What may be meant, in TOML; it need not fit.
fn meant(kind: &ValueKind, value: &DeValue<'_>) -> Option<String> {
    let said = said(value);
    let quoted = |text: &str| Some(toml::Value::String(text.to_owned()).to_string());
    let bare = || said.as_deref().map(|text| text.trim().replace([',', '_'], ""));
    match *kind {
        ValueKind::Whole { least, most } => {
            let x: f64 = bare()?.parse().ok()?;
            let n = x as i128;
            match n {
                _ if x.fract() != 0.0 => None,
                n if n > i128::from(most) => Some(most.to_string()),
                // One above what was asked for may be meant; what is 1 or more is for the example.
                n if n < i128::from(least) && n >= 0 && least > 1 => Some(least.to_string()),
                n => Some(n.to_string()),
            }
        }
        ValueKind::WholeOr { least, most, or } => match said.as_deref().map(str::trim) {
            Some(word) if word.eq_ignore_ascii_case(or) => quoted(or),
            _ => meant(&ValueKind::Whole { least, most }, value),
        },
        ValueKind::Number { most, .. } => {
            let text = bare()?;
            let percent = text.strip_suffix('%').and_then(|text| text.trim().parse::<f64>().ok());
            let x = percent.map(|percent| percent / 100.0).or_else(|| text.parse().ok())?;
            let x = if most <= 1.0 && x > 1.0 && x <= 100.0 { x / 100.0 } else { x };
            Some(format!("{x:?}"))
        }
        ValueKind::Bool => match said.as_deref()?.to_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some("true".into()),
            "false" | "no" | "off" | "0" | "none" => Some("false".into()),
            _ => None,
        },
        ValueKind::Text | ValueKind::Path => quoted(&said?),
        ValueKind::Texts => Some(format!("[{}]", quoted(&said?)?)),
        ValueKind::ChoiceOrTexts(texts) => meant(&ValueKind::Choice(texts), value),
        ValueKind::Choice(texts) => {
            let said = said?.to_lowercase();
            let like = |text: &&&str| said.contains(**text) || (said.len() > 2 && text.contains(&said));
            quoted(texts.iter().find(|text| **text == said).or_else(|| texts.iter().find(like))?)
        }
        ValueKind::Device => {
            let said = said?.to_lowercase().replace("gpu", "cuda");
            match said.parse::<u8>() {
                Ok(index) => quoted(&format!("cuda:{index}")),
                Err(_) => quoted(&said),
            }
        }
        ValueKind::Duration { .. } => quoted(&duration(&said?)?),
        ValueKind::Moment => quoted(&said?),
        ValueKind::Size { .. } => {
            quoted(&format!("{}B", bare()?.parse::<u64>().ok().filter(|bytes| *bytes >= 1 << 20)?))
        }
        ValueKind::Url => {
            let said = said?;
            quoted(&format!("http://{}", said.strip_prefix("https://").unwrap_or(&said)))
        }
        ValueKind::ShareOr(_) => quoted(&format!("{:?}", bare()?.parse::<f64>().ok()?)),
        // What may hold a credential is not repeated.
        ValueKind::Remote | ValueKind::Service | ValueKind::Shares | ValueKind::Listen => None,
        ValueKind::Hooks => None,
    }
}

/// A plain value as text, also the only one of a list.
fn said(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(_) => whole(value).map(|n| n.to_string()),
        DeValue::Float(float) => Some(float.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(moment) => Some(moment.to_string()),
        DeValue::Array(items) if items.len() == 1 => said(items.iter().next()?.as_ref()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Seconds without a unit, hours with a fraction, and Slurm's [days-]hours:minutes:seconds.
fn duration(said: &str) -> Option<String> {
    let said = said.trim();
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds.round()).ok().map(exact_duration);
    if let Ok(plain) = said.parse::<f64>() {
        return seconds(plain);
    }
    if let Some(colon) = said.find(':') {
        let (days, rest) = said.split_once('-').filter(|(days, _)| days.len() < colon).unwrap_or(("0", said));
        let parts: Vec<f64> = rest.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [hours, minutes, rest] = [parts.first()?, parts.get(1)?, parts.get(2).unwrap_or(&0.0)];
        return seconds(days.parse::<f64>().ok()? * 86400.0 + hours * 3600.0 + minutes * 60.0 + rest);
    }
    let unit = said.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
    let number: f64 = said.strip_suffix(unit)?.trim().parse().ok()?;
    let scale = match unit.to_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    };
    seconds(number * scale)
}
