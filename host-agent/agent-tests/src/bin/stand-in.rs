// SPDX-License-Identifier: Apache-2.0
//! Stands in for the programs that a keeper runs: `stand-in qemu|vsock|simulator ARGUMENTS`; and for a front from before
//! there were headers: `stand-in front DIRECTORY ADDRESS`, with the connections that a file `connections` in its directory says.
//!
//! As QEMU it speaks the three commands of the control protocol, says the lines of a boot over the status socket, and
//! then echoes what clients send to the forwarded port, with its model disk's name in front. What it does wrong stands in a
//! file `manner` beside its own program: `halt`, `halt CODE`, `hang`, `wait` (until the file says another thing), or nothing.
//! With a file `drains` it heeds the word that it shall finish: what it has read it answers, then it closes. A line that
//! begins with `slow` it answers after a moment. Where its configuration has connections begin with a header that says whose
//! they are, it closes those that do not, and to a line `whose` it answers with that address.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a stand-in fails loudly")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use proxy_protocol::{Heard, Source, hear};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments[0].as_str() {
        "qemu" => qemu(&arguments[1..]),
        "vsock" => vsock(&arguments[1..]),
        "simulator" => simulator(&arguments[1..]),
        "front" => front(Path::new(&arguments[1]), &arguments[2]),
        other => eprintln!("stand-in: what is {other}?"),
    }
}

fn qemu(arguments: &[String]) {
    if arguments[0] == "--version" {
        println!("QEMU emulator version {}", say("version", "10.1.0"));
        return;
    }
    let all = arguments.join("\n");
    let control = after(&all, "qmp.sock").unwrap();
    let run_dir = control.parent().unwrap().to_owned();
    let listener = UnixListener::bind(&control).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    writer.write_all(b"{\"QMP\":{}}\n").unwrap();
    // Requests have no line breaks: one object each.
    for _ in 0..2 {
        let mut depth = 0;
        let mut byte = [0];
        loop {
            reader.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        writer.write_all(b"{\"return\":{}}\n").unwrap();
    }
    guest(&run_dir, &all);
}

fn guest(run_dir: &Path, arguments: &str) {
    // The port as QEMU's user network takes it: hostfwd=tcp:ADDRESS:PORT-…
    let forward = arguments.split("hostfwd=tcp:").nth(1).unwrap().split('-').next().unwrap();
    let listener = TcpListener::bind(forward).unwrap();
    let mut status = UnixStream::connect(run_dir.join("vsock_7001")).unwrap();
    // Early, as guests do.
    let config = std::fs::read(run_dir.join("config.disk")).unwrap();
    let header = String::from_utf8_lossy(&config).contains("\"client_address\":\"proxy-protocol\"");
    let manner = say("manner", "");
    for phase in 1..=11 {
        if manner == "hang" && phase == 5 {
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        while phase == 5 && say("manner", "") == "wait" {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let (Some(code), 8) = (manner.strip_prefix("halt"), phase) {
            let code = if code.is_empty() { "90" } else { code.trim() };
            status.write_all(format!("2 8 {code}\n").as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            return;
        }
        status.write_all(format!("1 {phase} {}\n", phase * 10).as_bytes()).unwrap();
    }
    let name = say("name", "first");
    let doors = Arc::new(Doors::default());
    if !say("drains", "").is_empty() {
        let (control, doors) = (UnixListener::bind(run_dir.join("vsock")).unwrap(), Arc::clone(&doors));
        std::thread::spawn(move || heed(&control, &doors));
    }
    for stream in listener.incoming() {
        let (stream, name) = (Arc::new(stream.unwrap()), name.clone());
        doors.enter(&stream);
        std::thread::spawn(move || {
            let mut stream = &*stream;
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            let whose = if header {
                // All that the host's own programs write: 16 bytes and what they announce.
                let mut bytes = vec![0; 16];
                let Ok(()) = reader.read_exact(&mut bytes) else { return };
                if let Ok(Heard::Part(wanted)) = hear(&bytes) {
                    bytes.resize(wanted, 0);
                    let Ok(()) = reader.read_exact(&mut bytes[16..]) else { return };
                }
                match hear(&bytes) {
                    Ok(Heard::Whole(Source::Client(client))) => client.ip().to_string(),
                    Ok(Heard::Whole(Source::Local)) => "local".to_owned(),
                    _ => {
                        let _ = stream.shutdown(Shutdown::Both);
                        return;
                    }
                }
            } else {
                "unknown".to_owned()
            };
            // Clients come and go.
            while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                if line == "whose\n" {
                    line = format!("whose {whose}\n");
                }
                if line.starts_with("slow") {
                    std::thread::sleep(Duration::from_millis(30));
                }
                if stream.write_all(format!("{name} {line}").as_bytes()).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
}

/// The connections of clients, and whether the guest shall finish.
#[derive(Default)]
struct Doors(Mutex<(Vec<Weak<TcpStream>>, bool)>);

impl Doors {
    fn enter(&self, stream: &Arc<TcpStream>) {
        let mut inside = self.0.lock().unwrap();
        inside.0.push(Arc::downgrade(stream));
        if inside.1 {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Nothing more is read; what was read is answered.
    fn close(&self) {
        let mut inside = self.0.lock().unwrap();
        inside.1 = true;
        for stream in inside.0.drain(..).filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

/// As `vhost-device-vsock` and a guest behind it.
fn heed(control: &UnixListener, doors: &Doors) {
    for stream in control.incoming() {
        let mut stream = stream.unwrap();
        let mut line = vec![0; format!("CONNECT {}\n", drain_protocol::PORT).len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("CONNECT {}\n", drain_protocol::PORT).into_bytes());
        stream.write_all(b"OK 1024\n").unwrap();
        let mut request = drain_protocol::REQUEST;
        stream.read_exact(&mut request).unwrap();
        assert_eq!(drain_protocol::hear(&request), drain_protocol::Heard::Drain);
        doors.close();
        stream.write_all(&drain_protocol::ANSWER).unwrap();
    }
}

fn vsock(arguments: &[String]) {
    let socket = after(&arguments.join("\n"), "vhost.sock").unwrap();
    let _listener = UnixListener::bind(socket).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn simulator(arguments: &[String]) {
    let socket = arguments.iter().skip_while(|word| *word != "--socket").nth(1).unwrap();
    let _listener = UnixListener::bind(socket).unwrap();
    // What a simulator that is killed leaves behind.
    let left = std::env::temp_dir().join(format!("simulator-{}", std::process::id()));
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("trace"), "").unwrap();
    println!("{{\"stand_in\":true}}");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn front(directory: &Path, listen: &str) {
    let mut held = std::fs::File::create(directory.join("front.pid")).unwrap();
    held.lock().unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let started = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap();
    held.write_all(format!("{} {started}\n", std::process::id()).as_bytes()).unwrap();
    let _listener = TcpListener::bind(listen).unwrap();
    let socket = directory.join("front.sock");
    let _ = std::fs::remove_file(&socket);
    let mut target = "null".to_owned();
    for stream in UnixListener::bind(socket).unwrap().incoming() {
        let mut stream = BufReader::new(stream.unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim();
        let mut error = "";
        if let Some(to) = line.strip_prefix("{\"point\":") {
            to.strip_suffix('}').unwrap().clone_into(&mut target);
        } else if line != "\"status\"" {
            error = ",\"error\":\"the request is malformed\"";
        }
        let connections = std::fs::read_to_string(directory.join("connections")).unwrap();
        let answer = format!(
            "{{\"listen\":\"{listen}\",\"target\":{target},\"connections\":{connections},\"accepted\":0,\"turned_away\":0{error}}}\n"
        );
        let _ = stream.get_mut().write_all(answer.as_bytes());
    }
}

/// The path among the arguments that ends with `name`.
fn after(arguments: &str, name: &str) -> Option<PathBuf> {
    let end = arguments.find(name)? + name.len();
    let start = arguments[..end].rfind(['=', ':', '\n', ','])? + 1;
    Some(PathBuf::from(&arguments[start..end]))
}

/// What stands in a file beside the program that was called.
fn say(file: &str, otherwise: &str) -> String {
    let here = std::env::var("STAND_IN_DIR").unwrap();
    std::fs::read_to_string(Path::new(&here).join(file)).unwrap_or_else(|_| otherwise.to_owned()).trim().to_owned()
}
