//! What runs inside the test containers: one static program, compiled by the tests themselves, the only file of its image.

use std::io::{Read, Write};
use std::time::Duration;
use std::{env, fs, process, thread};

const SIGTERM: i32 = 15;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn _exit(code: i32) -> !;
    fn write(descriptor: i32, bytes: *const u8, count: usize) -> isize;
}

extern "C" fn say_bye(_: i32) {
    unsafe {
        write(1, c"bye\n".as_ptr().cast(), 4);
        _exit(3);
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| arguments[at].parse::<usize>().unwrap();
    let mut out = std::io::stdout().lock();
    let mut err = std::io::stderr().lock();
    match arguments[0].as_str() {
        "exit" => process::exit(number(1) as i32),
        "say" => {
            writeln!(out, "{}", arguments[1]).unwrap();
            process::exit(arguments.get(2).map_or(0, |code| code.parse().unwrap()));
        }
        "lines" => (0..number(1)).for_each(|line| writeln!(out, "line {line}").unwrap()),
        "both" => {
            for line in 0..number(1) {
                writeln!(out, "out {line}").unwrap();
                out.flush().unwrap();
                writeln!(err, "err {line}").unwrap();
            }
        }
        "flood" => {
            let mut left = number(1);
            let block: Vec<u8> = (0..64 * 1024).map(|at| if at % 100 == 99 { b'\n' } else { b'a' + (at % 26) as u8 }).collect();
            while left > 0 {
                let part = left.min(block.len());
                out.write_all(&block[..part]).unwrap();
                left -= part;
            }
            out.flush().unwrap();
        }
        "line" => out.write_all(&vec![b'x'; number(1)]).unwrap(),
        "binary" => out.write_all(&[0xff, 0xfe, b'a', 0xc3, b'\n', 0x00, 0x80]).unwrap(),
        "sleep" => {
            writeln!(out, "ready").unwrap();
            thread::sleep(Duration::from_millis(number(1) as u64));
        }
        "graceful" => {
            unsafe { signal(SIGTERM, say_bye as *const () as usize) };
            writeln!(out, "ready").unwrap();
            thread::sleep(Duration::from_secs(600));
        }
        "stubborn" => {
            unsafe { signal(SIGTERM, 1) };
            writeln!(out, "ready").unwrap();
            thread::sleep(Duration::from_secs(600));
        }
        "finish-on-term" => {
            extern "C" fn done(_: i32) {
                unsafe { _exit(0) }
            }
            unsafe { signal(SIGTERM, done as *const () as usize) };
            writeln!(out, "ready").unwrap();
            thread::sleep(Duration::from_secs(600));
        }
        "eat" => {
            let mut memory = vec![0_u8; number(1)];
            for at in (0..memory.len()).step_by(4096) {
                memory[at] = 1;
            }
            println!("{}", memory.len());
        }
        "eat-in-child" => {
            drop((out, err));
            let status = process::Command::new("/proc/self/exe").args(["eat", &arguments[1]]).status().unwrap();
            process::exit(if status.success() { 0 } else { 5 });
        }
        "clock" => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            writeln!(out, "{}", now.as_nanos()).unwrap();
        }
        "env" => writeln!(out, "{:?}", env::var(&arguments[1])).unwrap(),
        "read" => {
            let mut text = String::new();
            fs::File::open(&arguments[1]).unwrap().read_to_string(&mut text).unwrap();
            write!(out, "{text}").unwrap();
        }
        "write" => process::exit(fs::write(&arguments[1], "x").map_or(1, |()| 0)),
        other => panic!("unknown command {other}"),
    }
}
