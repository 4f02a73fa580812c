// SPDX-License-Identifier: Apache-2.0
use tokio::net::TcpStream;

use super::*;

async fn guest(name: &'static [u8]) -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                stream.write_all(name).await.unwrap();
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                stream.write_all(&rest).await.unwrap();
            });
        }
    });
    address
}

fn free() -> SocketAddrV4 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
    address
}

async fn hello(address: SocketAddrV4) -> Option<(TcpStream, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let mut name = vec![0; 3];
    stream.read_exact(&mut name).await.ok()?;
    Some((stream, name))
}

async fn wait_for(dir: &Path, wanted: impl Fn(&FrontStatus) -> bool) -> FrontStatus {
    loop {
        if let Some(status) = ask(dir, &FrontRequest::Status).await
            && wanted(&status)
        {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn connections_stay_where_they_are_and_new_ones_go_where_it_points() {
    let directory = tempfile::tempdir().unwrap();
    let args = FrontArgs { dir: directory.path().to_owned(), listen: free() };
    let (dir, listen) = (args.dir.clone(), args.listen);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            let front = tokio::task::spawn_local(async move { drop(serve(&args, Limits::default()).await) });
            wait_for(&dir, |status| status.listen == Some(listen)).await;
            assert!(hello(listen).await.is_none(), "nobody serves yet");
            let (one, two) = (guest(b"one").await, guest(b"two").await);
            ask(&dir, &FrontRequest::Point(Some((1, one)))).await.unwrap();
            let (mut old, name) = hello(listen).await.unwrap();
            assert_eq!(name, b"one");
            ask(&dir, &FrontRequest::Point(Some((2, two)))).await.unwrap();
            let (new, name) = hello(listen).await.unwrap();
            assert_eq!(name, b"two");
            let status = wait_for(&dir, |status| status.connections.len() == 2).await;
            assert_eq!((status.connections[&1], status.accepted, status.turned_away), (1, 2, 1));
            // The old one still works both ways, and its end is passed on.
            old.write_all(b"bytes").await.unwrap();
            old.shutdown().await.unwrap();
            let mut rest = Vec::new();
            old.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"bytes");
            drop((old, new));
            wait_for(&dir, |status| status.connections.is_empty()).await;
            let elsewhere = free();
            assert_eq!(ask(&dir, &FrontRequest::Listen(elsewhere)).await.unwrap().error, None);
            assert_eq!(hello(elsewhere).await.unwrap().1, b"two");
            front.abort();
        })
        .await;
}

#[tokio::test]
async fn a_port_that_is_taken_leaves_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = taken.local_addr().unwrap() else { panic!("IPv4") };
    let args = FrontArgs { dir: directory.path().to_owned(), listen: free() };
    let (dir, listen) = (args.dir.clone(), args.listen);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            let front = tokio::task::spawn_local(async move { drop(serve(&args, Limits::default()).await) });
            wait_for(&dir, |status| status.listen == Some(listen)).await;
            let status = ask(&dir, &FrontRequest::Listen(address)).await.unwrap();
            assert!(status.error.unwrap().contains(&address.to_string()));
            assert_eq!(status.listen, Some(listen));
            front.abort();
        })
        .await;
}

/// A guest that says three letters and closes; it reads nothing.
async fn short_guest() -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"bye").await.unwrap();
        }
    });
    address
}

/// A guest that writes without end.
async fn endless_guest() -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move { while stream.write_all(&[7; 65536]).await.is_ok() {} });
        }
    });
    address
}

#[tokio::test]
async fn a_client_that_stays_without_need_loses_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let args = FrontArgs { dir: directory.path().to_owned(), listen: free() };
    let (dir, listen) = (args.dir.clone(), args.listen);
    let short = Duration::from_millis(50);
    let limits =
        Limits { patience: Patience { leaving: short, taking: short, ..Patience::default() }, ..Limits::default() };
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            let front = tokio::task::spawn_local(async move { drop(serve(&args, limits).await) });
            wait_for(&dir, |status| status.listen == Some(listen)).await;
            // The guest has closed; the client never does.
            ask(&dir, &FrontRequest::Point(Some((1, short_guest().await)))).await.unwrap();
            let (stays, name) = hello(listen).await.unwrap();
            assert_eq!(name, b"bye");
            wait_for(&dir, |status| status.accepted == 1 && status.connections.is_empty()).await;
            drop(stays);
            // The client takes nothing of what the guest says.
            ask(&dir, &FrontRequest::Point(Some((2, endless_guest().await)))).await.unwrap();
            let deaf = TcpStream::connect(listen).await.unwrap();
            wait_for(&dir, |status| status.accepted == 2 && status.connections.is_empty()).await;
            drop(deaf);
            front.abort();
        })
        .await;
}

#[tokio::test]
async fn one_peer_cannot_take_every_place() {
    let directory = tempfile::tempdir().unwrap();
    let args = FrontArgs { dir: directory.path().to_owned(), listen: free() };
    let (dir, listen) = (args.dir.clone(), args.listen);
    let limits = Limits { most: Most { all: 3, of_one: 2 }, ..Limits::default() };
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            let front = tokio::task::spawn_local(async move { drop(serve(&args, limits).await) });
            wait_for(&dir, |status| status.listen == Some(listen)).await;
            ask(&dir, &FrontRequest::Point(Some((1, guest(b"one").await)))).await.unwrap();
            let (first, _) = hello(listen).await.unwrap();
            let (_second, _) = hello(listen).await.unwrap();
            assert!(hello(listen).await.is_none());
            // Another address of this machine.
            let other = tokio::net::TcpSocket::new_v4().unwrap();
            other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let mut other = other.connect(listen.into()).await.unwrap();
            let mut name = [0; 3];
            other.read_exact(&mut name).await.unwrap();
            assert_eq!(&name, b"one");
            let status = wait_for(&dir, |status| status.accepted == 3).await;
            assert_eq!(status.turned_away, 1);
            drop(first);
            wait_for(&dir, |status| status.connections.get(&1) == Some(&2)).await;
            assert!(hello(listen).await.is_some());
            front.abort();
        })
        .await;
}

/// The first bytes of a connection to the guest as they come there, with the client's own behind them.
#[tokio::test]
async fn a_guest_is_told_whose_a_connection_is_where_it_wants_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let args = FrontArgs { dir: directory.path().to_owned(), listen: free() };
    let (dir, listen) = (args.dir.clone(), args.listen);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            let front = tokio::task::spawn_local(async move { drop(serve(&args, Limits::default()).await) });
            wait_for(&dir, |status| status.listen == Some(listen)).await;
            let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let std::net::SocketAddr::V4(address) = guest.local_addr().unwrap() else { panic!("IPv4") };
            for (request, header) in [
                (FrontRequest::PointWithHeader((1, address)), true),
                (FrontRequest::Point(Some((1, address))), false),
                (FrontRequest::PointWithHeader((2, address)), true),
            ] {
                assert_eq!(ask(&dir, &request).await.unwrap().header, header);
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
                let mut client = socket.connect(listen.into()).await.unwrap();
                client.write_all(b"hello").await.unwrap();
                client.shutdown().await.unwrap();
                let mut said = Vec::new();
                guest.accept().await.unwrap().0.read_to_end(&mut said).await.unwrap();
                let first = proxy_protocol::header(client.local_addr().unwrap(), listen.into());
                let expected = [if header { first.as_slice() } else { &[] }, b"hello"].concat();
                assert_eq!(said, expected);
            }
            front.abort();
        })
        .await;
}

/// What passes between daemons and fronts of different versions, while nobody wants headers.
#[test]
fn what_is_asked_and_told_as_ever_has_its_old_form() {
    let address = "127.0.0.1:9".parse().unwrap();
    let text = |request: &FrontRequest| serde_json::to_string(request).unwrap();
    assert_eq!(text(&FrontRequest::Point(Some((1, address)))), r#"{"point":[1,"127.0.0.1:9"]}"#);
    assert_eq!(text(&FrontRequest::PointWithHeader((1, address))), r#"{"point-with-header":[1,"127.0.0.1:9"]}"#);
    let status = FrontStatus { target: Some((1, address)), ..FrontStatus::default() };
    let earlier = r#"{"listen":null,"target":[1,"127.0.0.1:9"],"connections":{},"accepted":0,"turned_away":0}"#;
    assert_eq!(serde_json::to_string(&status).unwrap(), earlier);
    assert_eq!(serde_json::from_str::<FrontStatus>(earlier).unwrap(), status);
}

/// As the daemon asks, by the same user.
async fn ask(dir: &Path, request: &FrontRequest) -> Option<FrontStatus> {
    super::ask(dir, nix::unistd::geteuid().as_raw(), request).await
}
