//! `peregrine produce`: each line is a message. Lines are read by a thread of their own and sent pipelined; the first failure ends
//! the reading, and what is on its way is waited for.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write, stdin, stdout};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::ProgressBar;
use peregrine_client::{Acknowledged, Client, Error, Message, Producer, QueueId, Receipt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::arguments::ProduceOptions;
use super::failure::Failure;
use super::progress;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Lines handed over at once, and how many such portions may wait: a few thousand lines between reader and sender.
const PORTION_LINES: usize = 512;
const PORTIONS: usize = 8;
/// Messages whose ids are to be printed and that wait for their acknowledgement, or for one before them.
const UNPRINTED_MAX: usize = 64 << 10;

type Portion = Vec<Vec<u8>>;

pub async fn run(broker: &str, options: ProduceOptions) -> Result<(), Failure> {
    let tally = Arc::new(Tally::default());
    let result = produce(broker, &options, &tally).await;
    let (taken, acknowledged) = (tally.taken.load(Ordering::Relaxed), tally.acknowledged.load(Ordering::Relaxed));
    // The sentence first: what ends the output is always the count.
    if let Err(Failure::Said(sentence)) = &result {
        eprintln!("peregrine: {sentence}");
    }
    eprintln!("acknowledged {acknowledged} of {taken}");
    match result {
        Ok(()) if acknowledged == taken => Ok(()),
        _ => Err(Failure::Silent),
    }
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Tally {
    taken: AtomicU64,
    acknowledged: AtomicU64,
    first_error: Mutex<Option<Error>>,
}

impl Tally {
    fn note(&self, error: Error) {
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn error(&self) -> Option<Error> {
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn produce(broker: &str, options: &ProduceOptions, tally: &Arc<Tally>) -> Result<(), Failure> {
    let (source, bytes) = open(&options.file)?;
    let client = Client::builder(broker).timeout(options.timeout).connect().await?;
    let producer = client.producer(&options.topic).level(options.level).timeout(options.timeout);
    let producer = producer.on_loss(|loss| {
        let least = if loss.exact { "" } else { "at least " };
        eprintln!("peregrine: the broker lost {least}{} acknowledged messages of queue {}", loss.messages, loss.queue);
    });
    let producer = producer.build().await?;
    let bar = progress::bar(bytes);
    let (ids, printed) = if options.ids { Some(print_ids(&options.topic, tally)).unzip() } else { (None, None) };
    let sent = send_lines(source, bytes.is_some(), options, &producer, ids, tally, &bar).await;
    producer.flush().await;
    if let Some(printed) = printed {
        printed.await.map_err(|error| Failure::Said(error.to_string()))??;
    }
    bar.finish_and_clear();
    sent?;
    match tally.error() {
        Some(error) => Err(error.into()),
        None if producer.lost() > 0 => Err(Failure::Silent),
        None => Ok(()),
    }
}

async fn send_lines(
    source: Box<dyn Read + Send>,
    is_file: bool,
    options: &ProduceOptions,
    producer: &Producer,
    ids: Option<mpsc::Sender<Acknowledged>>,
    tally: &Arc<Tally>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let (portions_out, mut portions) = mpsc::channel::<Portion>(PORTIONS);
    let reading = tokio::task::spawn_blocking(move || read_lines(source, &portions_out));
    while let Some(portion) = portions.recv().await {
        for line in portion {
            tally.taken.fetch_add(1, Ordering::Relaxed);
            if tally.error().is_some() {
                if is_file {
                    continue; // the rest of a file is counted, so that the last line speaks of all of it
                }
                return Ok(()); // dropping the channel ends the reading
            }
            bar.inc(line.len() as u64 + 1);
            let mut message = match key(&line, options) {
                Some(key) => Message::new(Vec::new()).key(key.to_vec()),
                None => Message::new(Vec::new()),
            };
            if let Some(queue) = options.queue {
                message = message.queue(QueueId(queue));
            }
            if let Err(error) = send(producer, message.body(line), ids.as_ref(), tally).await {
                tally.note(error);
            }
        }
        bar.set_message(format!("{} acknowledged", tally.acknowledged.load(Ordering::Relaxed)));
    }
    match reading.await {
        Ok(result) => result.map_err(|error| Failure::Said(format!("{}: {error}", options.file.display()))),
        Err(error) => Err(Failure::Said(error.to_string())),
    }
}

/// Sends a message; its fate is noted, or told where ids are printed.
async fn send(
    producer: &Producer,
    message: Message,
    ids: Option<&mpsc::Sender<Acknowledged>>,
    tally: &Arc<Tally>,
) -> Result<(), Error> {
    if let Some(ids) = ids {
        // Nobody takes it where printing has failed, which is told in the end.
        let _ = ids.send(producer.enqueue(message).await?).await;
        return Ok(());
    }
    let noted = tally.clone();
    let note = move |result| match result {
        Ok(_) => {
            noted.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => noted.note(error),
    };
    producer.send_with(message, note).await
}

type Printing = JoinHandle<std::io::Result<()>>;

/// Waits for acknowledgements in the order of the lines, in a thread of its own, and prints what they say.
fn print_ids(topic: &str, tally: &Arc<Tally>) -> (mpsc::Sender<Acknowledged>, Printing) {
    let (ids, mut acknowledged) = mpsc::channel::<Acknowledged>(UNPRINTED_MAX);
    let (topic, tally, runtime) = (topic.to_owned(), tally.clone(), Handle::current());
    let printing = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::new(stdout());
        while let Some(next) = acknowledged.blocking_recv() {
            match runtime.block_on(next.acknowledged()) {
                Ok(Receipt { queue, offset, id, .. }) => {
                    tally.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let id = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
                    writeln!(out, "{topic}/{queue}@{offset} {id}")?;
                }
                Err(error) => tally.note(error),
            }
            if acknowledged.is_empty() {
                out.flush()?;
            }
        }
        out.flush()
    });
    (ids, printing)
}

/// Hands the lines over in portions; a last line without its end counts, what follows the last end does not.
fn read_lines(source: Box<dyn Read + Send>, out: &mpsc::Sender<Portion>) -> std::io::Result<()> {
    let mut source = BufReader::with_capacity(READ_BYTES, source);
    let mut portion = Portion::new();
    loop {
        let mut line = Vec::new();
        let len = source.read_until(b'\n', &mut line)?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if len > 0 {
            portion.push(line);
        }
        // Where no more can be had without waiting, what is here goes: a person may be typing.
        let is_due = len == 0 || portion.len() == PORTION_LINES || source.buffer().is_empty();
        if is_due && !portion.is_empty() && out.blocking_send(std::mem::take(&mut portion)).is_err() {
            return Ok(()); // the sender has given up
        }
        if len == 0 {
            return Ok(());
        }
    }
}

fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(stdin()), None));
    }
    let named = |error: std::io::Error| Failure::Said(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(named)?;
    let metadata = file.metadata().map_err(named)?;
    if metadata.is_dir() {
        return Err(Failure::Said(format!("{} is a directory", path.display())));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// The line's key field, if keys are wanted and it has one.
fn key<'a>(line: &'a [u8], options: &ProduceOptions) -> Option<&'a [u8]> {
    let delimiter = options.key_delimiter?;
    let field = options.key_field.unwrap_or(1) as usize;
    line.split(|&byte| byte == delimiter).nth(field - 1)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::arguments::{Arguments, Command};
    use super::*;

    fn lines_of(text: &'static [u8]) -> Portion {
        let (out, mut portions) = mpsc::channel(100);
        read_lines(Box::new(text), &out).expect("memory");
        drop(out);
        let mut lines = Portion::new();
        while let Ok(portion) = portions.try_recv() {
            lines.extend(portion);
        }
        lines
    }

    #[test]
    fn lines_are_what_stands_before_each_end() {
        assert_eq!(lines_of(b"a\n\n\xff\r\nlast"), [&b"a"[..], b"", b"\xff\r", b"last"]);
        assert_eq!(lines_of(b"a\n"), [b"a"]);
        assert_eq!(lines_of(b"\n"), [b""]);
        assert!(lines_of(b"").is_empty());
    }

    #[test]
    fn keys_are_fields_from_one() {
        let options = |arguments: &[&str]| {
            let all = ["peregrine", "produce", "t"].iter().chain(arguments);
            match Arguments::parse_from(all).command {
                Command::Produce(options) => options,
                other => panic!("{other:?}"),
            }
        };
        let by_second = options(&["--key-delimiter", ",", "--key-field", "2"]);
        assert_eq!(key(b"a,b,c", &by_second), Some(&b"b"[..]));
        assert_eq!(key(b"a,,c", &by_second), Some(&b""[..]));
        assert_eq!(key(b"a", &by_second), None);
        assert_eq!(key(b"a,b", &options(&["--key-delimiter", ","])), Some(&b"a"[..]));
        assert_eq!(key(b"a,b", &options(&[])), None);
    }
}
