//! The lab `rot`: a byte of the file with the data has changed. Is anything wrong ever given out?
//!
//! Whatever a reader gets must be what was written, or an error. A process that dies has given out
//! nothing, so that is no wrong answer; it is counted.

use std::fs;

use crate::checker::Checker;
use crate::lab::{Counts, Found, ensure, quick_scratch};
use crate::options::Tier;
use crate::support::Process;
use crate::support::random::Random;
use crate::writer::Script;

const TURNS: u64 = 80;
const KEYS: u64 = 8;

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let changes = tier.pick(600, 20_000);
    let (folder, script) = (quick_scratch(), Script { seed, keys: KEYS });
    let environment = folder.path().join("environment");
    let mut process = Process::start(script.write(&environment, TURNS));
    ensure(process.wait().success(), || process.stderr())?;
    let data = environment.join("data.mdb");
    let whole = fs::read(&data).expect("the data are there");
    let (mut random, mut checker) = (Random::from_seed(seed), Checker::new(script.arguments()));
    let mut counts = Counts::new();
    for _ in 0..changes {
        let (at, bit) = (random.below(whole.len() as u64) as usize, random.below(8));
        let mut changed = whole.clone();
        changed[at] ^= 1 << bit;
        fs::write(&data, &changed).expect("the data are written");
        let found = match checker.look(&environment) {
            Ok(applied) => {
                ensure(applied == TURNS, || {
                    format!("with bit {bit} of byte {at} changed, {applied} turns are there")
                })?;
                "changes without effect"
            }
            Err(death) if death.contains("dies with") => "deaths of the reader",
            Err(wrong) => {
                ensure(!wrong.contains("what no turn wrote"), || {
                    format!("with bit {bit} of byte {at} changed: {wrong}")
                })?;
                "changes found out"
            }
        };
        *counts.entry(found).or_default() += 1;
    }
    Ok(counts)
}
