//! The host's side of the network tests, on loopback only: a server of files whose contents are known, and visitors of
//! the guest's own server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::boot::{Ending, Report};
use crate::control::{Record, Verdict};
use crate::disk::hexadecimal;
use crate::scenario::Scenario;

/// The value by which the guest says that visitors may come.
pub const SERVING: &str = "serving";

/// Longest file.
const FILE_LIMIT_BYTES: u64 = 256 << 20;
/// Connections to the file server at a time.
const CONNECTIONS: usize = 32;
/// How long the guest may let either side wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// Visitors at a time.
const VISITORS_AT_ONCE: usize = 8;
/// How often is looked whether they may come.
const POLL: Duration = Duration::from_millis(50);

/// A server of files for the guest, as long as it lives.
///
/// `/data/N` is a file of `N` bytes; `/short` is cut off, `/nonsense` is no HTTP, and everything else is not there.
pub struct FileServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl FileServer {
    /// Starts one on a free port.
    pub fn start() -> Result<FileServer> {
        let listener = listen()?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || accept(&listener, &stopped));
        Ok(FileServer { address, stop })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let open = open.clone();
        thread::spawn(move || {
            // The guest's end of a connection is the guest's business.
            let _ = answer(stream);
            open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let path = read_path(&stream)?;
    let bytes = path.strip_prefix("/data/").and_then(|bytes| bytes.parse().ok());
    match (path.as_str(), bytes) {
        (_, Some(bytes)) if bytes <= FILE_LIMIT_BYTES => {
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
            chunks(bytes).try_for_each(|chunk| stream.write_all(&chunk))
        }
        ("/short", _) => {
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: 2000\r\n\r\n")?;
            stream.write_all(&[b'x'; 1000])
        }
        ("/nonsense", _) => stream.write_all(b"SSH-2.0-this is another protocol\r\n\r\n"),
        _ => write!(stream, "HTTP/1.0 404 Not found\r\nContent-Length: 0\r\n\r\n"),
    }
}

/// Reads a request to its end, and returns its path.
fn read_path(stream: &TcpStream) -> io::Result<String> {
    let mut lines = BufReader::new(stream.take(4096)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    Ok(first.split(' ').nth(1).unwrap_or_default().to_string())
}

/// The contents of a file of `bytes` bytes, in pieces.
fn chunks(bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    const CHUNK_BYTES: u64 = 64 << 10;
    (0..bytes.div_ceil(CHUNK_BYTES)).map(move |chunk| {
        let first = chunk * CHUNK_BYTES;
        let mut data: Vec<u8> = (first / 8..(first + CHUNK_BYTES) / 8).flat_map(word).collect();
        data.truncate((bytes - first).min(CHUNK_BYTES) as usize);
        data
    })
}

/// Eight bytes of every file: no two places have the same.
fn word(index: u64) -> [u8; 8] {
    let mut x = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ x >> 31).to_le_bytes()
}

/// The digest that the guest reported for a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Fetched {
    bytes: u64,
    digest: String,
}

impl Fetched {
    /// The claim in a control-channel value `fetched BYTES SHA256`.
    pub fn parse(words: &[String]) -> Result<Fetched> {
        let [bytes, digest] = words else { bail!("fetched wants BYTES SHA256, not {words:?}") };
        let bytes = bytes.parse().ok().filter(|&bytes| bytes <= FILE_LIMIT_BYTES);
        let bytes = bytes.ok_or_else(|| anyhow!("there is no file of that length: {words:?}"))?;
        Ok(Fetched { bytes, digest: digest.to_ascii_lowercase() })
    }

    pub fn verify(&self) -> Result<()> {
        let mut hash = Sha256::new();
        chunks(self.bytes).for_each(|chunk| hash.update(chunk));
        let expected = hexadecimal(&hash.finalize());
        if expected == self.digest {
            return Ok(());
        }
        bail!("the guest has {}, the host {expected}", self.digest)
    }
}

impl std::fmt::Display for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "fetched {}", self.bytes)
    }
}

/// A listener at a free port of the host's.
fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")
}

/// What QEMU says when it cannot listen at a port that is to lead to the guest.
const PORT_TAKEN: &str = "ould not set up host forwarding rule";

/// Whether that ended a boot before it began: QEMU listens only some time after a port was drawn, and somebody else may
/// have been given it meanwhile.
pub fn lost_a_port(report: &Report) -> bool {
    matches!(report.ending, Ending::Qemu(_))
        && report.record.last_begun().is_none()
        && report.last_lines.iter().any(|line| line.contains(PORT_TAKEN))
}

/// What the host has for the network devices of one boot.
pub struct Network {
    files: FileServer,
    /// A port for each device: what comes there goes to the guest's server.
    pub ports: Vec<u16>,
}

impl Network {
    /// Starts what the scenario's machine needs.
    pub fn start(scenario: &Scenario) -> Result<Network> {
        let files = FileServer::start()?;
        // All are held until all are drawn: none is given out twice.
        let held = scenario.nics.iter().map(|_| listen()).collect::<Result<Vec<_>>>()?;
        let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<_>>()?;
        Ok(Network { files, ports })
    }

    /// The kernel's words about it.
    pub fn words(&self, scenario: &Scenario) -> String {
        let Scenario { fetch_mib, visitors, .. } = scenario;
        format!("net-port={} fetch={fetch_mib} visitors={visitors}", self.files.port())
    }

    /// Runs `boot`, and sends visitors to the guest meanwhile, as many as it was told and when it says so on its
    /// control channel. Returns also what they have seen.
    pub fn entertain<T>(
        &self,
        scenario: &Scenario,
        control: &Path,
        boot: impl FnOnce() -> T,
    ) -> (T, Vec<(String, Verdict)>) {
        let visitors = Visitors { ports: &self.ports, count: scenario.visitors };
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let seen = scope.spawn(|| visitors.visit(control, &is_over));
            let result = boot();
            is_over.store(true, Ordering::Release);
            let panicked = || vec![("visitors".to_string(), Err("the host's side panicked".to_string()))];
            (result, seen.join().unwrap_or_else(|_| panicked()))
        })
    }
}

/// Who visits the guest's servers.
struct Visitors<'a> {
    /// Where they come to, on loopback.
    ports: &'a [u16],
    /// How many to each.
    count: usize,
}

impl Visitors<'_> {
    /// Waits until the guest says on its control channel that it is serving, and visits it. Returns what came of it for
    /// each port; nothing if the guest never said so, or `is_over`.
    fn visit(&self, control: &Path, is_over: &AtomicBool) -> Vec<(String, Verdict)> {
        let is_serving = || {
            let record = Record::read(&std::fs::read(control).unwrap_or_default());
            record.values.iter().any(|(key, _)| key == SERVING)
        };
        while !is_serving() {
            if is_over.load(Ordering::Acquire) {
                return vec![];
            }
            thread::sleep(POLL);
        }
        let visit_port = |(number, &port)| {
            let verdict = self.visit_port(port, is_over).map_err(|problem| format!("{problem:#}"));
            (format!("{} visitors of interface {number}", self.count), verdict)
        };
        self.ports.iter().enumerate().map(visit_port).collect()
    }

    fn visit_port(&self, port: u16, is_over: &AtomicBool) -> Result<()> {
        let next = AtomicUsize::new(0);
        let visit = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.count {
                    return Ok(());
                }
                if is_over.load(Ordering::Acquire) {
                    bail!("the guest was gone before visitor {number}");
                }
                look_at_page(port).with_context(|| format!("visitor {number}"))?;
            }
        };
        thread::scope(|scope| {
            let visitors: Vec<_> = (0..VISITORS_AT_ONCE).map(|_| scope.spawn(visit)).collect();
            visitors
                .into_iter()
                .try_for_each(|visitor| visitor.join().map_err(|_| anyhow!("a visitor panicked"))?)
        })
    }
}

/// Fetches the status page, and looks whether it is one.
fn look_at_page(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    check_page(&response)
}

fn check_page(response: &str) -> Result<()> {
    let (head, page) = response.split_once("\r\n\r\n").context("the response has no head")?;
    if !head.starts_with("HTTP/1.0 200 ") {
        bail!("the response is {:?}", head.lines().next().unwrap_or_default());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or_default();
    if length.parse() != Ok(page.len()) {
        bail!("{} bytes came, {length} were promised", page.len());
    }
    for part in ["Sluice: the IOMMU", "live mappings", "faults: "] {
        if !page.contains(part) {
            bail!("the page has no {part:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scenario::Nic;

    #[test]
    fn no_port_is_drawn_twice_nor_held_afterwards() {
        // So many that some would be, among all that there are.
        let scenario = Scenario { nics: &[Nic::Virtio; 400], ..Scenario::DEFAULT };
        let network = Network::start(&scenario).unwrap();
        let different: BTreeSet<u16> = network.ports.iter().copied().chain([network.files.port()]).collect();
        assert_eq!(different.len(), 401);
        // Others may have been given one meanwhile.
        let is_free = |&port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        assert!(network.ports.iter().any(is_free));
    }

    #[test]
    fn a_lost_port_is_told_from_other_ends() {
        let report = |ending, lines: &[u8], said: &str| {
            let (record, last_lines) = (Record::read(lines), vec![said.to_string()]);
            Report { ending, record, typed: vec![], last_lines }
        };
        let failed = || Ending::Qemu("exit status: 1".into());
        let said = "-netdev user,id=net0: Could not set up host forwarding rule 'tcp:127.0.0.1:4080-:80'";
        assert!(lost_a_port(&report(failed(), b"", said)));
        assert!(!lost_a_port(&report(failed(), b"begin a\n", said)));
        assert!(!lost_a_port(&report(failed(), b"", "no such device")));
        assert!(!lost_a_port(&report(Ending::NoVerdict, b"", said)));
    }

    fn get(port: u16, path: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        response
    }

    #[test]
    fn the_file_server_sends_what_the_claim_is_compared_with() {
        let server = FileServer::start().unwrap();
        for bytes in [0, 1, 100_000] {
            let response = get(server.port(), &format!("/data/{bytes}"));
            let body = response.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            let digest = hexadecimal(&Sha256::digest(&response[body..]));
            let claim = Fetched::parse(&[bytes.to_string(), digest]).unwrap();
            assert_eq!(response.len() - body, bytes);
            claim.verify().unwrap();
        }
        assert!(get(server.port(), "/data/999999999999").starts_with(b"HTTP/1.0 404 "));
        assert!(get(server.port(), "/short").len() < 2000);
    }

    #[test]
    fn another_digest_or_length_is_no_proof() {
        let claim = |bytes: &str, digest: &str| Fetched::parse(&[bytes.into(), digest.into()]);
        let digest = hexadecimal(&Sha256::digest(word(0)));
        claim("8", &digest).unwrap().verify().unwrap();
        assert!(claim("7", &digest).unwrap().verify().is_err());
        assert!(claim("999999999999", &digest).is_err());
        assert!(Fetched::parse(&["8".into()]).is_err());
    }

    #[test]
    fn a_page_is_whole_and_about_the_iommu() {
        let page = "Sluice: the IOMMU\nlive mappings 1\ngroup 0: faults 0\nfaults: 0, lost: 0\n";
        let response = |length: usize| format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{page}");
        check_page(&response(page.len())).unwrap();
        assert!(check_page(&response(page.len() + 1)).is_err());
        assert!(check_page("HTTP/1.0 404 Not found\r\n\r\n").is_err());
        assert!(check_page("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").is_err());
    }

    #[test]
    fn visitors_wait_until_they_may_come_and_notice_who_is_not_there() {
        let control = std::env::temp_dir().join(format!("sluice-visitors-{}", std::process::id()));
        let port = listen().unwrap().local_addr().unwrap().port();
        let visitors = Visitors { ports: &[port], count: 3 };
        assert!(visitors.visit(&control, &AtomicBool::new(true)).is_empty());
        std::fs::write(&control, "value serving 1\n").unwrap();
        let came = visitors.visit(&control, &AtomicBool::new(false));
        assert!(matches!(&came[..], [(name, Err(_))] if name == "3 visitors of interface 0"), "{came:?}");
        std::fs::remove_file(control).unwrap();
    }
}
