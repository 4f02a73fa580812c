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
            let front = tokio::task::spawn_local(async move { drop(serve(&args).await) });
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
            let front = tokio::task::spawn_local(async move { drop(serve(&args).await) });
            wait_for(&dir, |status| status.listen == Some(listen)).await;
            let status = ask(&dir, &FrontRequest::Listen(address)).await.unwrap();
            assert!(status.error.unwrap().contains(&address.to_string()));
            assert_eq!(status.listen, Some(listen));
            front.abort();
        })
        .await;
}
