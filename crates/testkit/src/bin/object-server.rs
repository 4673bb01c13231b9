//! The object store of the tests as a process of its own, for measurements: its processor time counts apart. It says
//! its address on standard output, and ends when standard input does.

use ckptd_testkit::servers::ObjectServer;

fn main() {
    let server = ObjectServer::start();
    println!("{}", server.url());
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
}
