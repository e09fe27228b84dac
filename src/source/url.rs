//! URLs in arguments and messages.

/// Whether this is a URL rather than a path.
pub fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// A text without the parts of URLs that grant access: what follows a `?`, and what precedes an
/// `@` in front of the host.
pub fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out += before;
        let end = url.find(|c: char| c.is_whitespace() || "\"')>".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let url = url.split('?').next().unwrap_or(url);
        let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        // On the hub the `@` introduces a revision, and stands behind the first slash.
        out += host.rsplit('@').next().unwrap_or(host);
        out += path;
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let shown = without_secrets("GET \"https://u:p@host/a/b?sig=xyz\" failed, see hf://o/n@v1");
        assert_eq!(shown, "GET \"https://host/a/b\" failed, see hf://o/n@v1");
    }

    #[test]
    fn urls_are_told_from_paths() {
        assert!(is_url("s3://bucket/x") && is_url("hf://a/b"));
        assert!(!is_url("models/R1") && !is_url("C:\\models") && !is_url("/a://b"));
    }
}
