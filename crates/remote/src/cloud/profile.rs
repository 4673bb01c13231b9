//! Static profiles in `~/.aws/credentials` and `~/.aws/config`.
//!
//! Invariant: a profile that says where other credentials come from (SSO, a process, a role) is refused by name; none
//! is passed over in silence.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::secrets::Environment;

/// Keys of a profile.
pub struct Profile {
    pub key_id: String,
    pub secret_key: String,
    pub token: Option<String>,
}

/// What makes a profile one of another kind.
const OTHER_KINDS: [(&str, &str); 6] = [
    ("sso_session", "single sign-on"),
    ("sso_start_url", "single sign-on"),
    ("credential_process", "a credential process"),
    ("role_arn", "a role to assume"),
    ("credential_source", "a role to assume"),
    ("login_session", "a console login"),
];

type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// The chosen profile's keys; none where there are no files, or nothing of that name in them and none was asked for.
///
/// # Errors
/// What cannot be used, as a clause with what to do instead.
pub fn read(environment: &Environment) -> Result<Option<Profile>, String> {
    let name = chosen(environment);
    let keys = section(environment, &name);
    let (Some(key_id), Some(secret_key)) = (keys.get("aws_access_key_id"), keys.get("aws_secret_access_key")) else {
        if let Some((_, kind)) = OTHER_KINDS.iter().find(|(key, _)| keys.contains_key(*key)) {
            return Err(format!(
                "the AWS profile {name:?} gets its credentials by {kind}, which only AWS's own tools can do; run them \
                 first: eval \"$(aws configure export-credentials --profile {name} --format env)\""
            ));
        }
        let asked = environment.get("AWS_PROFILE").is_some();
        return if asked && keys.is_empty() { Err(format!("there is no AWS profile {name:?}")) } else { Ok(None) };
    };
    let token = keys.get("aws_session_token").cloned();
    Ok(Some(Profile { key_id: key_id.clone(), secret_key: secret_key.clone(), token }))
}

/// The chosen profile's region.
pub fn region(environment: &Environment) -> Option<String> {
    section(environment, &chosen(environment)).remove("region")
}

/// The name of the chosen profile.
pub fn chosen(environment: &Environment) -> String {
    environment.first(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]).unwrap_or("default").to_owned()
}

/// Where profiles are: credentials, and the rest.
pub fn files(environment: &Environment) -> [PathBuf; 2] {
    let file = |variable: &str, below: &str| {
        environment.get(variable).map(PathBuf::from).or_else(|| environment.home(below)).unwrap_or_default()
    };
    [file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), file("AWS_CONFIG_FILE", ".aws/config")]
}

/// The keys of the profile `name` in both files; those of `credentials` count more.
fn section(environment: &Environment, name: &str) -> BTreeMap<String, String> {
    let [credentials, config] = files(environment);
    let file = |path: PathBuf| parse(&std::fs::read_to_string(path).unwrap_or_default());
    let mut config = file(config);
    let mut keys = config.remove(&format!("profile {name}")).or_else(|| config.remove(name)).unwrap_or_default();
    keys.extend(file(credentials).remove(name).unwrap_or_default());
    keys
}

/// `[section]`, `key = value`; indented lines belong to the key above and are of no use here.
fn parse(text: &str) -> Sections {
    let (mut sections, mut section) = (Sections::new(), String::new());
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#', ';'])) {
        if let Some(name) = line.trim().strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.split_whitespace().collect::<Vec<_>>().join(" ");
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.split(" #").next().unwrap_or_default().trim();
            sections.entry(section.clone()).or_default().insert(key.trim().to_lowercase(), value.to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn home(config: &str, credentials: &str) -> (tempfile::TempDir, String) {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        let path = home.path().to_str().unwrap().to_owned();
        (home, path)
    }

    #[test]
    fn static_profiles_are_read_from_both_files() {
        let config = "[default]\nregion = eu-west-1\ns3 =\n  max_concurrent_requests = 20\n\
                      [profile lab]\nregion=us-east-2 # here\n";
        let credentials = "# mine\n[default]\naws_access_key_id = one\naws_secret_access_key = two\n\n\
                           [lab]\naws_access_key_id=three\naws_secret_access_key=four=\naws_session_token=five\n";
        let (_home, path) = home(config, credentials);
        let environment = Environment::of([("HOME", path.as_str())]);
        let profile = read(&environment).unwrap().unwrap();
        assert_eq!((profile.key_id.as_str(), profile.secret_key.as_str(), profile.token), ("one", "two", None));
        assert_eq!(region(&environment).as_deref(), Some("eu-west-1"));
        let environment = Environment::of([("HOME", path.as_str()), ("AWS_PROFILE", "lab")]);
        let profile = read(&environment).unwrap().unwrap();
        assert_eq!((profile.secret_key.as_str(), profile.token.as_deref()), ("four=", Some("five")));
        assert_eq!(region(&environment).as_deref(), Some("us-east-2"));
    }

    #[test]
    fn other_kinds_of_profiles_are_refused_by_name() {
        let config = "[profile work]\nsso_session = corp\n[profile tool]\ncredential_process = /bin/x\n\
                      [profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = default\n";
        let (_home, path) = home(config, "");
        for (name, kind) in [("work", "single sign-on"), ("tool", "a credential process"), ("role", "a role to assume")]
        {
            let refused = read(&Environment::of([("HOME", path.as_str()), ("AWS_PROFILE", name)])).err().unwrap();
            assert!(
                refused.contains(kind) && refused.contains(name) && refused.contains("export-credentials"),
                "{refused}"
            );
        }
        let missing = read(&Environment::of([("HOME", path.as_str()), ("AWS_PROFILE", "nobody")])).err().unwrap();
        assert!(missing.contains("nobody"), "{missing}");
        assert!(read(&Environment::of([("HOME", path.as_str())])).unwrap().is_none());
    }
}
