//! Words of paths that mean something wherever they stand: a short list of priors, the same for every site.
//!
//! They only weigh: what a site has learned of its own routes overrules nearly all of them (see `routes`). A word is here
//! because it is the name that widely used software gives to the thing, or because word lists of scanners hold it.

/// The words that mean something, found by their hash: built once, [`Lexicon::PLACES`] places, linear probing.
#[derive(Clone, Debug)]
pub struct Lexicon {
    /// Of all hashes of paths.
    pub seed: u64,
    places: Vec<(u64, u16)>,
}

impl Lexicon {
    /// Only probes ask for it.
    pub const EXPLOIT: u16 = 1;
    /// A tree of files of people.
    pub const DAV: u16 = 2;
    /// A log-in, registration or form.
    pub const CREDENTIAL: u16 = 4;
    /// Programs ask for it by themselves.
    pub const AUTOMATIC: u16 = 8;
    /// A parameter with a password.
    pub const PASSWORD: u16 = 16;
    /// Says nothing: the directory names the page.
    pub const INDEX: u16 = 32;
    /// An extension of what servers run.
    pub const SCRIPT: u16 = 64;
    /// An extension of what nobody publishes.
    pub const SECRET: u16 = 128;
    /// An extension of what pages are made of.
    pub const ASSET: u16 = 256;
    const PLACES: usize = 1024;

    /// All words, hashed by a seed that those who choose paths must not know.
    pub fn new(seed: u64) -> Self {
        // The lowest bit tells extensions from other words.
        let mut lexicon = Self { seed: seed & !1, places: vec![(0, 0); Self::PLACES] };
        let lists: [(&[&str], u16, u64); 9] = [
            (&EXPLOIT_SEGMENTS, Self::EXPLOIT, 0),
            (&DAV_SEGMENTS, Self::DAV, 0),
            (&CREDENTIALS, Self::CREDENTIAL, 0),
            (&AUTOMATIC, Self::AUTOMATIC, 0),
            (&PASSWORD_PARAMETERS, Self::PASSWORD, 0),
            (&INDEX_STEMS, Self::INDEX, 0),
            (&SCRIPT_EXTENSIONS, Self::SCRIPT, 1),
            (&SECRET_EXTENSIONS, Self::SECRET, 1),
            (&ASSET_EXTENSIONS, Self::ASSET, 1),
        ];
        for (words, flag, space) in lists {
            for word in words {
                let key = fold(word.as_bytes(), lexicon.seed ^ space);
                let mut at = key as usize % Self::PLACES;
                while lexicon.places[at].1 != 0 && lexicon.places[at].0 != key {
                    at = (at + 1) % Self::PLACES;
                }
                lexicon.places[at] = (key, lexicon.places[at].1 | flag);
            }
        }
        lexicon
    }

    /// What a word means; 0 where it means nothing.
    pub fn find(&self, key: u64) -> u16 {
        // There are some 170 words in 1,024 places: hardly ever is there a second step.
        let mut at = key as usize % Self::PLACES;
        loop {
            let (found, words) = self.places[at];
            if words == 0 || found == key {
                return words;
            }
            at = (at + 1) % Self::PLACES;
        }
    }
}

/// Directory or file names that only probes ask for.
const EXPLOIT_SEGMENTS: [&str; 28] = [
    ".env",
    ".git",
    ".svn",
    ".hg",
    ".aws",
    ".ssh",
    ".vscode",
    ".DS_Store",
    ".htpasswd",
    ".htaccess",
    "phpunit",
    "eval-stdin.php",
    "cgi-bin",
    "actuator",
    "phpinfo.php",
    "info.php",
    "server-status",
    "server-info",
    "phpmyadmin",
    "phpMyAdmin",
    "pma",
    "MyAdmin",
    "wlwmanifest.xml",
    "HNAP1",
    "boaform",
    "owa",
    "solr",
    "shell.php",
];
/// Seeded: trees in which people's own files lie (Nextcloud, ownCloud, CalDAV servers).
const DAV_SEGMENTS: [&str; 6] = ["remote.php", "dav", "webdav", "caldav", "carddav", "public.php"];
/// Seeded: what log-ins, registrations and comment forms are called, in some languages.
const CREDENTIALS: [&str; 47] = [
    "login",
    "log-in",
    "log_in",
    "signin",
    "sign-in",
    "sign_in",
    "logon",
    "administrator",
    "auth",
    "authenticate",
    "authorize",
    "password",
    "passwd",
    "forgot",
    "forgot-password",
    "reset-password",
    "lostpassword",
    "register",
    "signup",
    "sign-up",
    "sign_up",
    "registration",
    "comment",
    "comments",
    "contact",
    "guestbook",
    "2fa",
    "otp",
    "mfa",
    "captcha",
    "token",
    "credentials",
    "anmelden",
    "anmeldung",
    "einloggen",
    "connexion",
    "entrar",
    "acceder",
    "accedi",
    "ingresar",
    "iniciar-sesion",
    "inloggen",
    "logowanie",
    "account-login",
    "wp-login",
    "wp-comments-post",
    "xmlrpc",
];
/// Seeded: what browsers, phones, mail programs and crawlers ask every site for.
const AUTOMATIC: [&str; 20] = [
    "favicon.ico",
    "favicon.png",
    "favicon.svg",
    "robots.txt",
    "ads.txt",
    "app-ads.txt",
    "humans.txt",
    "security.txt",
    "manifest.json",
    "site.webmanifest",
    "manifest.webmanifest",
    "browserconfig.xml",
    "crossdomain.xml",
    "clientaccesspolicy.xml",
    "opensearch.xml",
    "apple-app-site-association",
    "assetlinks.json",
    "autodiscover.xml",
    "config-v1.1.xml",
    "mta-sts.txt",
];
/// Parameters that carry a password.
const PASSWORD_PARAMETERS: [&str; 8] = ["pass", "password", "passwd", "pwd", "passwort", "pw", "log", "user_pass"];
/// Stems that say nothing: what comes before them names the page.
const INDEX_STEMS: [&str; 5] = ["index", "default", "new", "do", "submit"];
/// What servers run.
const SCRIPT_EXTENSIONS: [&str; 14] =
    ["php", "php5", "php7", "phtml", "asp", "aspx", "jsp", "jspx", "cgi", "pl", "cfm", "do", "action", "axd"];
/// What nobody publishes.
const SECRET_EXTENSIONS: [&str; 13] =
    ["env", "sql", "bak", "old", "swp", "pem", "key", "htpasswd", "sqlite", "git", "ini", "orig", "save"];
/// What pages are made of.
const ASSET_EXTENSIONS: [&str; 25] = [
    "css", "js", "mjs", "map", "png", "jpg", "jpeg", "gif", "webp", "avif", "svg", "ico", "woff", "woff2", "ttf",
    "eot", "otf", "mp4", "webm", "mp3", "ogg", "m4s", "ts", "pbf", "wasm",
];

/// 2^64 by the golden ratio: odd, and its bits show no pattern.
pub const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes eight bytes at a time, letters of both cases alike: `/WP-Login.php` is `/wp-login.php` to who attacks it.
pub fn fold(bytes: &[u8], seed: u64) -> u64 {
    let mut h = seed ^ (bytes.len() as u64).wrapping_mul(PRIME);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7]])
            | 0x2020_2020_2020_2020;
        h = (h ^ word).wrapping_mul(PRIME);
        h ^= h >> 29;
    }
    let mut word = 0u64;
    for byte in chunks.remainder() {
        word = word << 8 | u64::from(*byte | 0x20);
    }
    h = (h ^ word).wrapping_mul(PRIME);
    h ^ (h >> 32)
}
