//! What a request is for by its method, and what its answer says about the client.

/// What a method is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET and HEAD.
    Read,
    /// POST: a form, a log-in, or a call of an application.
    Post,
    /// PUT, DELETE, MKCOL, ...: who succeeds has been let in.
    Write,
    /// PROPFIND, REPORT, OPTIONS, LOCK, ...: a program asks what there is.
    Ask,
    /// None, or one that nobody knows.
    Other,
}

impl Method {
    /// From its name.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" | b"HEAD" => Self::Read,
            b"POST" => Self::Post,
            b"PUT" | b"PATCH" | b"DELETE" | b"MKCOL" | b"MOVE" | b"COPY" | b"PROPPATCH" | b"MKCALENDAR" => Self::Write,
            b"PROPFIND" | b"REPORT" | b"OPTIONS" | b"LOCK" | b"UNLOCK" | b"SEARCH" => Self::Ask,
            _ => Self::Other,
        }
    }
}

/// What an answer says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered. A status that could not be read is no failure.
    Good,
    /// It was led elsewhere.
    Redirect,
    /// There is no such thing (for this client).
    Missing,
    /// Not without a secret, or not so often: what guessers get.
    Denied,
    /// It says nothing about the client: cancelled, a condition, a conflict, a limit of size.
    Neutral,
    /// The server's own fault.
    Server,
}

impl Outcome {
    /// From the status, which means other things for some methods: MKCOL answered 405 finds the directory there, DELETE
    /// answered 404 finds nothing left to do, and browsers send OPTIONS on their own.
    pub fn of(method: Method, name: &[u8], status: u16) -> Self {
        let preflight = name == b"OPTIONS";
        match status {
            400..=499 if preflight => Self::Neutral,
            0..=299 | 304 => Self::Good,
            300..=399 => Self::Redirect,
            401 | 407 | 429 => Self::Denied,
            408 | 409 | 411..=413 | 415..=417 | 422..=426 | 428 | 499 | 507 => Self::Neutral,
            405 if name == b"MKCOL" => Self::Neutral,
            404 if name == b"DELETE" => Self::Neutral,
            403 | 406 if method == Method::Post => Self::Denied,
            400..=499 => Self::Missing,
            _ => Self::Server,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, status: u16) -> Outcome {
        Outcome::of(Method::of(name.as_bytes()), name.as_bytes(), status)
    }

    #[test]
    fn the_same_status_says_other_things_of_other_methods() {
        for (name, status, outcome) in [
            ("GET", 200, Outcome::Good),
            ("GET", 304, Outcome::Good),
            ("GET", 0, Outcome::Good),
            ("GET", 302, Outcome::Redirect),
            ("GET", 404, Outcome::Missing),
            ("GET", 403, Outcome::Missing),
            ("POST", 403, Outcome::Denied),
            ("GET", 401, Outcome::Denied),
            ("GET", 429, Outcome::Denied),
            ("OPTIONS", 401, Outcome::Neutral),
            ("MKCOL", 405, Outcome::Neutral),
            ("GET", 405, Outcome::Missing),
            ("DELETE", 404, Outcome::Neutral),
            ("GET", 499, Outcome::Neutral),
            ("GET", 416, Outcome::Neutral),
            ("GET", 414, Outcome::Missing),
            ("PUT", 507, Outcome::Neutral),
            ("GET", 503, Outcome::Server),
        ] {
            assert_eq!(of(name, status), outcome, "{name} {status}");
        }
    }
}
