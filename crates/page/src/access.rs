//! Who may look: a token that is known, and a name under which this machine may be reached.
//!
//! Invariant: a token is compared in constant time and never shown; it is taken from a header or a form, never from an
//! address. A cookie holds what follows from the token, not the token. Pure.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST};

const COOKIE_CONTEXT: &str = "ckptd 2026-11 cookie of the page";
/// A browser keeps the cookie for so long, in seconds.
const COOKIE_SECONDS: u32 = 30 * 24 * 3600;

/// Who may look at a page.
#[derive(Clone)]
pub struct PageAccess {
    /// Hash of the token; `None`: everybody on this machine.
    token: Option<blake3::Hash>,
    /// Hash of the cookie's value, and the value.
    cookie: Option<(blake3::Hash, String)>,
    cookie_name: String,
    /// Names besides localhost and plain addresses, in small letters.
    hosts: Vec<String>,
}

impl PageAccess {
    /// With `token`, on `port`. `hosts`: further names of this machine.
    pub fn new(token: Option<&str>, port: u16, hosts: &[String]) -> PageAccess {
        let value = token.map(|token| {
            let mut hasher = blake3::Hasher::new_derive_key(COOKIE_CONTEXT);
            hasher.update(token.as_bytes());
            hasher.finalize().to_hex().to_string()
        });
        PageAccess {
            token: token.map(|token| blake3::hash(token.as_bytes())),
            cookie: value.map(|value| (blake3::hash(value.as_bytes()), value)),
            // Cookies do not know ports, and two jobs may have a page each.
            cookie_name: format!("ckptd-{port}"),
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        }
    }

    /// Whether a request with these headers may look.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        self.token.is_none() || self.bearer_fits(headers) || self.cookie_fits(headers)
    }

    /// Whether `token` is the one.
    pub fn is_token(&self, token: &str) -> bool {
        // The comparison of hashes takes the same time whatever differs.
        self.token.is_none_or(|known| known == blake3::hash(token.trim().as_bytes()))
    }

    /// What a browser is told to keep once it has shown the token.
    pub fn set_cookie(&self) -> Option<String> {
        let (_, value) = self.cookie.as_ref()?;
        let name = &self.cookie_name;
        Some(format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECONDS}"))
    }

    fn bearer_fits(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        token.is_some_and(|token| self.is_token(token))
    }

    fn cookie_fits(&self, headers: &HeaderMap) -> bool {
        let Some((known, _)) = &self.cookie else { return false };
        let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.filter(|(name, _)| *name == self.cookie_name).any(|(_, value)| *known == blake3::hash(value.as_bytes()))
    }

    /// Whether the request was meant for this machine: a page elsewhere whose name was made to point here says its own
    /// name. A plain address cannot be made to point elsewhere.
    pub fn is_own_host(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
            return false;
        };
        let name = without_port(host).to_ascii_lowercase();
        let bare = name.strip_suffix('.').unwrap_or(&name);
        bare == "localhost"
            || bare.ends_with(".localhost")
            || is_address(bare)
            || self.hosts.iter().any(|own| own == bare)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) && !name.ends_with(':') => {
            if name.contains(':') && !name.starts_with('[') { host } else { name }
        }
        _ => host,
    }
}

fn is_address(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TOKEN: &str = "correct horse battery";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn access() -> PageAccess {
        PageAccess::new(Some(TOKEN), 8377, &["Train.example.org".into()])
    }

    #[test]
    fn a_token_opens_the_page_as_bearer_or_by_the_cookie_that_it_gave() {
        let access = access();
        let bearer = |value: &str| access.allows(&headers(&[("authorization", value)]));
        assert!(bearer(&format!("Bearer {TOKEN}")) && bearer(&format!("bearer {TOKEN}")));
        assert!(!bearer("Bearer wrong") && !bearer(TOKEN) && !bearer("Bearer ") && !access.allows(&headers(&[])));
        let cookie = access.set_cookie().unwrap();
        assert!(
            !cookie.contains(TOKEN) && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
            "{cookie}"
        );
        let pair = cookie.split(';').next().unwrap();
        assert!(access.allows(&headers(&[("cookie", &format!("other=1; {pair}"))])));
        for wrong in [format!("{pair}0"), pair.replace("8377", "8378"), format!("ckptd-8377={TOKEN}")] {
            assert!(!access.allows(&headers(&[("cookie", &wrong)])), "{wrong}");
        }
        assert!(PageAccess::new(None, 1, &[]).allows(&headers(&[])));
    }

    #[test]
    fn only_a_host_that_cannot_be_made_to_point_here_is_answered() {
        let own = |host: &str| access().is_own_host(&headers(&[("host", host)]));
        for host in ["localhost:8377", "127.0.0.1", "127.0.0.1:1", "[::1]:8377", "10.0.0.7:80", "TRAIN.example.org."] {
            assert!(own(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8377", "127.0.0.1.evil.example", "", "[::1", "evil:8377"] {
            assert!(!own(host), "{host}");
        }
        assert!(!access().is_own_host(&headers(&[])));
        assert!(!access().is_own_host(&headers(&[("host", "localhost"), ("host", "evil.example")])));
    }
}
