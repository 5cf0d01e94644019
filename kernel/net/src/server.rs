//! A web server with a few pages.

use alloc::{boxed::Box, format, string::String, vec::Vec};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp,
    time::Duration,
};

use crate::{fetch::buffer, http};

/// Connections at a time.
const CONNECTIONS: usize = 16;

const RECEIVE_BYTES: usize = 1024;
const SEND_BYTES: usize = 4096;

/// Longest page, without its head.
const PAGE_LIMIT_BYTES: usize = 64 * 1024;

/// How long a connection may take from its first packet to its last.
const CONNECTION_NS: u64 = 30_000_000_000;
const TCP_TIMEOUT: Duration = Duration::from_secs(15);

/// What the server shows: the text of a page by its path, `None` if there is none.
pub type Pages = Box<dyn Fn(&str) -> Option<String> + Send>;

/// The server, stepped like a job.
pub struct Server {
    port: u16,
    pages: Pages,
    connections: Vec<Connection>,
    served: u64,
}

struct Connection {
    socket: SocketHandle,
    /// When it ends at the latest; none while nobody is connected.
    until_ns: Option<u64>,
    response: Option<Response>,
}

struct Response {
    text: Vec<u8>,
    sent: usize,
}

impl Server {
    /// A server on `port` of `sockets`. `None` without memory for its connections.
    pub fn new(port: u16, pages: Pages, sockets: &mut SocketSet<'static>) -> Option<Self> {
        let mut connections = Vec::new();
        connections.try_reserve_exact(CONNECTIONS).ok()?;
        for _ in 0..CONNECTIONS {
            let mut socket = tcp::Socket::new(buffer(RECEIVE_BYTES)?, buffer(SEND_BYTES)?);
            socket.set_timeout(Some(TCP_TIMEOUT));
            connections.push(Connection { socket: sockets.add(socket), until_ns: None, response: None });
        }
        Some(Self { port, pages, connections, served: 0 })
    }

    /// Connections that were answered.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// Does what can be done, and returns when it has to be stepped again at the latest.
    pub fn step(&mut self, sockets: &mut SocketSet<'static>, now_ns: u64) -> u64 {
        let mut due_ns = u64::MAX;
        for connection in &mut self.connections {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.socket);
            if connection.step(socket, &self.pages, now_ns) {
                self.served += 1;
            }
            if connection.is_over(socket, now_ns) {
                // Also out of TIME-WAIT: somebody who comes back at once gets another port than the one that is waited
                // for.
                socket.abort();
                (connection.until_ns, connection.response) = (None, None);
                // The port is not 0, and the socket is closed.
                let _ = socket.listen(self.port);
            }
            due_ns = due_ns.min(connection.until_ns.unwrap_or(u64::MAX));
        }
        due_ns
    }
}

impl Connection {
    fn is_over(&self, socket: &tcp::Socket<'_>, now_ns: u64) -> bool {
        let is_late = self.until_ns.is_some_and(|until_ns| now_ns >= until_ns);
        is_late || matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
    }

    /// Reads a request, writes the response, ends the connection. True when the response has just been written whole.
    fn step(&mut self, socket: &mut tcp::Socket<'_>, pages: &Pages, now_ns: u64) -> bool {
        if !socket.is_active() {
            return false;
        }
        self.until_ns.get_or_insert(now_ns.saturating_add(CONNECTION_NS));
        if self.response.is_none() {
            self.response = read_request(socket, pages);
        }
        let Some(response) = &mut self.response else {
            // Who ends the connection before the request does wants no answer.
            if !socket.may_recv() && socket.may_send() {
                socket.close();
            }
            return false;
        };
        let rest = &response.text[response.sent..];
        if rest.is_empty() {
            return false;
        }
        // A connection that is broken off is over by its state.
        response.sent += socket.send_slice(rest).unwrap_or(0);
        let is_done = response.sent == response.text.len();
        if is_done {
            socket.close();
        }
        is_done
    }
}

/// The response, once the request is complete. Nothing of it is taken out before: what does not fit into the socket's
/// buffer is too long.
fn read_request(socket: &mut tcp::Socket<'_>, pages: &Pages) -> Option<Response> {
    let is_full = socket.recv_queue() == socket.recv_capacity();
    let request = socket.peek(RECEIVE_BYTES).ok()?;
    let text = match http::parse_request(request) {
        Ok(None) if is_full => response("413 Request too long", "too long\n"),
        Ok(None) => return None,
        Err(error) => response("400 Bad request", &format!("{error}\n")),
        Ok(Some(path)) => match pages(path) {
            Some(page) => response("200 OK", &page),
            None => response("404 Not found", "there is no such page\n"),
        },
    };
    // An empty receive buffer, so that the connection can end without a reset.
    let _ = socket.recv(|bytes| (bytes.len(), ()));
    Some(Response { text, sent: 0 })
}

fn response(status: &str, page: &str) -> Vec<u8> {
    let mut end = page.len().min(PAGE_LIMIT_BYTES);
    while !page.is_char_boundary(end) {
        end -= 1;
    }
    let page = &page[..end];
    let length = page.len();
    format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
    )
    .into_bytes()
}
