//! What runs inside the test containers: one static program, compiled by the tests themselves, the only file of its image.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

const SIGTERM: i32 = 15;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn _exit(code: i32) -> !;
    fn write(descriptor: i32, bytes: *const u8, count: usize) -> isize;
    fn sleep(seconds: u32) -> u32;
}

extern "C" fn say_bye(_: i32) {
    unsafe {
        write(1, c"bye\n".as_ptr().cast(), 4);
        _exit(3);
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments[0].as_str() {
        "worker" => worker(&arguments[1..]),
        _ => step(&arguments),
    }
}

fn step(arguments: &[String]) {
    let number = |at: usize| arguments[at].parse::<usize>().unwrap();
    let mut out = std::io::stdout().lock();
    let mut err = std::io::stderr().lock();
    match arguments[0].as_str() {
        "exit" => process::exit(number(1) as i32),
        "vanish" => unsafe { _exit(number(1) as i32) },
        "frame" => {
            let frame = b"\0step-engine 0123456789abcdef0123456789abcdef {\"event\": \"done\", \"code\": 9}\n";
            out.write_all(&frame[..20]).unwrap();
            out.flush().unwrap();
            thread::sleep(Duration::from_millis(50));
            out.write_all(&frame[20..]).unwrap();
            out.write_all(b"no newline\0step-eng").unwrap();
            out.flush().unwrap();
            err.write_all(b"nor here").unwrap();
        }
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
        "slow" => {
            // Longer than an engine waits by default.
            extern "C" fn done(_: i32) {
                unsafe {
                    sleep(12);
                    _exit(3);
                }
            }
            unsafe { signal(SIGTERM, done as *const () as usize) };
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
            // The report of the kill gets lost in Docker 20.10 when the container ends right behind it.
            thread::sleep(Duration::from_secs(1));
            process::exit(if status.success() { 0 } else { 5 });
        }
        "work" => {
            writeln!(out, "ready").unwrap();
            writeln!(err, "at work").unwrap();
            thread::sleep(Duration::from_millis(number(1) as u64));
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&arguments[2]).unwrap();
            file.write_all(b"x").unwrap();
            writeln!(out, "done").unwrap();
        }
        "clock" => {
            thread::sleep(Duration::from_millis(arguments.get(2).map_or(0, |text| text.parse().unwrap())));
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            writeln!(out, "{}", now.as_nanos()).unwrap();
        }
        "env" => writeln!(out, "{:?}", env::var(&arguments[1])).unwrap(),
        "read" => {
            let mut text = String::new();
            fs::File::open(&arguments[1]).unwrap().read_to_string(&mut text).unwrap();
            write!(out, "{text}").unwrap();
        }
        "append" => {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&arguments[1]).unwrap();
            file.write_all(b"x").unwrap();
        }
        "write" => process::exit(fs::write(&arguments[1], "x").map_or(1, |()| 0)),
        other => panic!("unknown command {other}"),
    }
}

unsafe extern "C" {
    fn on_exit(handler: extern "C" fn(i32, *mut u8), argument: *mut u8) -> i32;
    fn kill(process: i32, signal: i32) -> i32;
    fn setsid() -> i32;
}

static NONCE: OnceLock<String> = OnceLock::new();
static CHILD: AtomicI32 = AtomicI32::new(0);
/// Fields of the frames that name the step.
static STEP: Mutex<String> = Mutex::new(String::new());

fn frame(descriptor: i32, json: &str) {
    let frame = format!("\0step-engine {} {json}\n", NONCE.get().unwrap());
    unsafe { write(descriptor, frame.as_ptr(), frame.len()) };
}

fn done(code: i32, signal: i32, damaged: bool) {
    let damaged = if damaged { "\"it is\"" } else { "null" };
    let out_of_memory = signal == 9 && fs::read_to_string("/sys/fs/cgroup/memory/memory.oom_control")
        .or_else(|_| fs::read_to_string("/sys/fs/cgroup/memory.events"))
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0"));
    let step = STEP.lock().unwrap().clone();
    let json = format!(
        "{{\"event\": \"done\", {step}, \"code\": {code}, \"signal\": {signal}, \"oom\": {out_of_memory}, \
         \"peak_memory_bytes\": 4711, \"seconds\": 0.5, \"damaged\": {damaged}}}"
    );
    frame(1, &json);
    frame(2, &json);
}

extern "C" fn done_at_exit(code: i32, _: *mut u8) {
    done(code, 0, false);
}

/// The value of a field in a line of JSON, as far as these tests need it.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = &line[line.find(&format!("\"{name}\":"))? + name.len() + 3..];
    Some(rest.trim_start().trim_start_matches('"').split(['"', ',', '}']).next().unwrap())
}

/// A warm worker: `container` or `process`, then how it warms up. A step's name is the command that it runs.
fn worker(arguments: &[String]) {
    let value = |name: &str| arguments.iter().find_map(|argument| argument.strip_prefix(name));
    let mut hello = String::new();
    if std::io::stdin().read_line(&mut hello).unwrap() == 0 {
        process::exit(75);
    }
    assert_eq!(field(&hello, "version"), Some("1"));
    NONCE.set(field(&hello, "nonce").unwrap().to_owned()).unwrap();
    let (sender, gos) = mpsc::channel();
    let deaf = value("deaf").is_some();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            match field(&line, "number").map(|number| number.parse().unwrap()) {
                Some(number) if !deaf => {
                    // The step was told to have begun a moment before there is a process that a signal can go to.
                    while CHILD.load(Ordering::SeqCst) == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    unsafe { kill(-CHILD.load(Ordering::SeqCst), number) };
                }
                Some(_) => {}
                None => {
                    let go = (field(&line, "step").unwrap().to_owned(), field(&line, "attempt").unwrap().to_owned());
                    sender.send(go).unwrap();
                }
            }
        }
        drop(sender);
    });
    // The end of the input ends the warm-up, too.
    let mut first = None;
    let until = Instant::now() + Duration::from_millis(value("warm=").map_or(0, |text| text.parse().unwrap()));
    if let Some(bytes) = value("say=") {
        let block = vec![b'w'; bytes.parse().unwrap()];
        std::io::stdout().write_all(&block).unwrap();
        println!("\nwarming");
        eprintln!("warming, too");
    }
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match gos.recv_timeout(left) {
            Ok(step) => first = Some(step),
            Err(mpsc::RecvTimeoutError::Disconnected) => process::exit(75),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
    if value("unfit").is_some() {
        frame(1, "{\"event\": \"unfit\", \"reason\": \"no module\"}");
        process::exit(1);
    }
    if value("die").is_some() {
        process::exit(1);
    }
    frame(1, "{\"event\": \"ready\", \"seconds\": 0.5}");
    let is_process = arguments[0] == "process";
    let mut last = 75;
    loop {
        let next = first.take().or_else(|| match gos.try_recv() {
            // The client went while the step ran: only the exit code can tell how that ended.
            Err(mpsc::TryRecvError::Disconnected) => process::exit(last),
            Err(mpsc::TryRecvError::Empty) => gos.recv().ok(),
            Ok(step) => Some(step),
        });
        let Some((name, attempt)) = next else { process::exit(75) };
        let of = format!("\"step\": \"{name}\", \"attempt\": {attempt}");
        let started = format!("{{\"event\": \"started\", {of}}}");
        *STEP.lock().unwrap() = of;
        let command: Vec<String> = match value("run=") {
            Some(command) => command.split(',').map(str::to_owned).collect(),
            None => name.split(' ').map(str::to_owned).collect(),
        };
        if !is_process {
            frame(1, &started);
            assert_eq!(unsafe { on_exit(done_at_exit, std::ptr::null_mut()) }, 0);
            step(&command);
            std::io::stdout().flush().unwrap();
            process::exit(0);
        }
        CHILD.store(0, Ordering::SeqCst);
        // Before anything that it writes.
        frame(1, &started);
        let mut child = process::Command::new("/proc/self/exe");
        child.args(&command).stdin(process::Stdio::null());
        unsafe { child.pre_exec(|| if setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }) };
        let mut child = child.spawn().unwrap();
        CHILD.store(child.id() as i32, Ordering::SeqCst);
        let status = child.wait().unwrap();
        let signal = status.signal().unwrap_or(0);
        let code = status.code().unwrap_or(128 + signal);
        if command[0] == "vanish" && command.get(2).is_some() {
            process::exit(code);
        }
        last = code;
        done(code, signal, command.last().is_some_and(|last| last == "damage"));
    }
}
