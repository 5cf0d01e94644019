//! As much of HTTP/1.0 as a client for files and a server of a few pages need.

use core::{fmt, num::ParseIntError, str};

use alloc::string::String;

use smoltcp::wire::Ipv4Address;

/// Longest head of a request or response that is read.
pub const HEAD_LIMIT_BYTES: usize = 4096;

/// Longest URL.
const URL_LIMIT_BYTES: usize = 1024;

/// Whose file a URL names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authority {
    /// A machine by its address.
    Address(Ipv4Address),
    /// A machine by its name.
    Name(String),
}

/// A URL with scheme `http`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// The machine.
    pub authority: Authority,
    /// The port.
    pub port: u16,
    /// The path, with its slash.
    pub path: String,
}

/// Why a text is no URL that can be fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UrlError {
    /// It is longer than 1024 bytes.
    TooLong,
    /// It does not begin with `http://`.
    Scheme,
    /// There is no name, or one with characters that no name has.
    Name,
    /// The port is no number from 1 to 65535.
    Port,
    /// The path has characters that no path has.
    Path,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the URL is too long",
            Self::Scheme => "the URL does not begin with http://",
            Self::Name => "the URL has no valid name or address",
            Self::Port => "the port is no number from 1 to 65535",
            Self::Path => "the path has characters that do not belong there",
        })
    }
}

impl core::error::Error for UrlError {}

impl str::FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_LIMIT_BYTES {
            return Err(UrlError::TooLong);
        }
        let rest = text.strip_prefix("http://").ok_or(UrlError::Scheme)?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (name, port) = match authority.split_once(':') {
            Some((name, port)) => (name, port.parse().map_err(|_: ParseIntError| UrlError::Port)?),
            None => (authority, 80),
        };
        if port == 0 {
            return Err(UrlError::Port);
        }
        // Nothing that ends the line that it is put into.
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(UrlError::Path);
        }
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if name.is_empty() || !name.bytes().all(of_a_name) {
            return Err(UrlError::Name);
        }
        let authority = match name.parse() {
            Ok(address) => Authority::Address(address),
            Err(_) => Authority::Name(name.into()),
        };
        Ok(Self { authority, port, path: path.into() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authority, port, path } = self;
        match authority {
            Authority::Address(address) => write!(f, "http://{address}:{port}{path}"),
            Authority::Name(name) => write!(f, "http://{name}:{port}{path}"),
        }
    }
}

/// The head of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// 200 if all is well.
    pub status: u16,
    /// Bytes of the body, if the head says.
    pub length: Option<u64>,
    /// Bytes of the head itself.
    pub bytes: usize,
}

/// Reads the head of a response from the beginning of `data`; `None` if it is not complete.
///
/// # Errors
/// It is no HTTP.
pub fn parse_head(data: &[u8]) -> Result<Option<Head>, NotHttp> {
    let Some(end) = data.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if data.len() < HEAD_LIMIT_BYTES { Ok(None) } else { Err(NotHttp) };
    };
    let text = str::from_utf8(&data[..end]).map_err(|_| NotHttp)?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().ok_or(NotHttp)?.split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(NotHttp);
    }
    let status = words.next().and_then(|word| word.parse().ok()).ok_or(NotHttp)?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().map_err(|_: ParseIntError| NotHttp)?);
        }
    }
    Ok(Some(Head { status, length, bytes: end + 4 }))
}

/// The path that a request asks for, once its head is complete.
///
/// # Errors
/// It is no HTTP, or asks for something else than to be sent a page.
pub fn parse_request(data: &[u8]) -> Result<Option<&str>, NotHttp> {
    if !data.windows(4).any(|window| window == b"\r\n\r\n") {
        return Ok(None);
    }
    let line = data.split(|&byte| byte == b'\r').next().ok_or(NotHttp)?;
    let mut words = str::from_utf8(line).map_err(|_| NotHttp)?.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(path), Some(version)) if version.starts_with("HTTP/1.") => Ok(Some(path)),
        _ => Err(NotHttp),
    }
}

/// What the other side says is no HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotHttp;

impl fmt::Display for NotHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other side does not speak HTTP")
    }
}

impl core::error::Error for NotHttp {}

#[cfg(test)]
mod tests {
    use std::{format, string::ToString, vec, vec::Vec};

    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        let url: Url = "http://10.0.2.2:8080/a/b?c=d".parse().unwrap();
        assert_eq!(url.authority, Authority::Address(Ipv4Address::new(10, 0, 2, 2)));
        assert_eq!((url.port, &*url.path), (8080, "/a/b?c=d"));
        assert_eq!(url.to_string(), "http://10.0.2.2:8080/a/b?c=d");
        let url: Url = "http://example.org".parse().unwrap();
        assert_eq!((url.authority, url.port, &*url.path), (Authority::Name("example.org".into()), 80, "/"));
    }

    #[test]
    fn what_is_no_url_is_refused() {
        let error = |text: &str| text.parse::<Url>().unwrap_err();
        assert_eq!(error("https://a/"), UrlError::Scheme);
        assert_eq!(error("http:///x"), UrlError::Name);
        assert_eq!(error("http://a b/"), UrlError::Name);
        assert_eq!(error("http://a:0/"), UrlError::Port);
        assert_eq!(error("http://a:65536/"), UrlError::Port);
        assert_eq!(error("http://a:/"), UrlError::Port);
        assert_eq!(error("http://a/\r\nHost: b"), UrlError::Path);
        assert_eq!(error(&format!("http://a/{}", "x".repeat(1024))), UrlError::TooLong);
    }

    #[test]
    fn a_head_is_read_when_it_is_complete() {
        let head = b"HTTP/1.0 200 OK\r\ncontent-LENGTH: 42\r\nServer: x\r\n\r\nbody";
        for bytes in 0..head.len() - 4 {
            assert_eq!(parse_head(&head[..bytes]), Ok(None), "{bytes} bytes");
        }
        let parsed = Head { status: 200, length: Some(42), bytes: head.len() - 4 };
        assert_eq!(parse_head(head), Ok(Some(parsed)));
        let without = Head { status: 404, length: None, bytes: 24 };
        assert_eq!(parse_head(b"HTTP/1.1 404 Not here\r\n\r\n"), Ok(Some(Head { bytes: 25, ..without })));
    }

    #[test]
    fn a_head_that_is_none_or_does_not_end_is_refused() {
        let endless: Vec<u8> = vec![b'x'; HEAD_LIMIT_BYTES];
        let bad: [&[u8]; 5] = [
            &endless,
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.0 fine\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.0 200 \xff\r\n\r\n",
        ];
        for head in bad {
            assert_eq!(parse_head(head), Err(NotHttp));
        }
    }

    #[test]
    fn a_request_names_a_path() {
        assert_eq!(parse_request(b"GET /x HTTP/1.0\r\nHost: y\r\n"), Ok(None));
        assert_eq!(parse_request(b"GET /x HTTP/1.0\r\nHost: y\r\n\r\n"), Ok(Some("/x")));
        assert_eq!(parse_request(b"POST /x HTTP/1.0\r\n\r\n"), Err(NotHttp));
        assert_eq!(parse_request(b"GET /x\r\n\r\n"), Err(NotHttp));
    }
}
