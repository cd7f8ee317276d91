//! Times the reference as tests/benchmarks/run.py times the library: the same names, contexts and numbers of calls, and
//! a shuffled order. Prints JSON. Needs multi_model.rs beside it, with the derive of thiserror written out by hand.
#![allow(dead_code)]
mod multi_model;
use multi_model::*;
use std::hint::black_box;
use std::time::Instant;

const FITS: usize = 4096;
const FALLBACK: usize = 8000;
const LARGEST: usize = 1_000_000;
const SEED: u64 = 3;

struct Rng(u64);
impl Rng {
    // splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E3779B97F4A7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            v.swap(i, self.below(i + 1));
        }
    }
}

fn report(first: &mut bool, op: &str, size: usize, rounds: usize, mut round: impl FnMut() -> f64) {
    let warm = Instant::now();
    while warm.elapsed().as_millis() < 100 {
        round();
    }
    let mut t: Vec<f64> = (0..rounds).map(|_| round()).collect();
    t.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let sep = if *first { "" } else { ",\n" };
    *first = false;
    print!(
        "{sep}  {{\"operation\": \"{op}\", \"endpoints\": {size}, \"unit\": \"ns\", \"min\": {:.1}, \"median\": {:.1}, \"max\": {:.1}}}",
        t[0], t[t.len() / 2], t[t.len() - 1]
    );
}

fn main() {
    let mut first = true;
    println!("[");
    for size in [10usize, 100, 1_000, 10_000, 100_000] {
        let mut rng = Rng(SEED);
        let mut reg = ModelRegistry::new();
        let mut models: Vec<(String, ModelEndpoint, [String; 3])> = Vec::new();
        for i in 0..size {
            let id = format!("bonsai-8b:adapter-{i}");
            let ctx = if i == 0 {
                FITS
            } else if i == size - 1 {
                LARGEST
            } else {
                2 * FITS + rng.below(LARGEST - 2 * FITS)
            };
            let mut ep = ModelEndpoint::new(id.clone(), "qwen3-8b").with_context_length(ctx);
            if i == 0 {
                ep = ep.set_default();
            }
            let al = [format!("chat-{i}"), format!("code-{i}"), format!("math-{i}")];
            reg.register(ep.clone());
            reg.add_alias(al[0].clone(), ModelId::new(id.clone()));
            models.push((id, ep, al));
        }
        rng.shuffle(&mut models);
        let turns = (20_000 / size).max(1);
        let n = (turns * size) as f64;
        let ids: Vec<String> = models.iter().map(|m| m.0.clone()).collect();
        let aliases: Vec<String> = models.iter().map(|m| m.2[0].clone()).collect();
        let unknown: Vec<String> = ids.iter().map(|i| format!("{i}?")).collect();
        let mut router = ModelRouter::new(reg);
        macro_rules! each {
            ($op:expr, $names:expr, $call:expr) => {
                report(&mut first, $op, size, 21, || {
                    let start = Instant::now();
                    for _ in 0..turns {
                        for name in $names.iter() {
                            $call(black_box(name.as_str()));
                        }
                    }
                    start.elapsed().as_nanos() as f64 / n
                })
            };
        }
        each!("route(id)", ids, |name: &str| {
            let _ = black_box(black_box(&router).route(Some(name)));
        });
        each!("route(alias)", aliases, |name: &str| {
            let _ = black_box(black_box(&router).route(Some(name)));
        });
        each!("route(None)", ids, |_: &str| {
            let _ = black_box(black_box(&router).route(black_box(None)));
        });
        each!("route_for_context(id, n), it fits", ids, |name: &str| {
            let _ = black_box(black_box(&router).route_for_context(Some(name), black_box(FITS)));
        });
        each!("not found", unknown, |name: &str| {
            let _ = black_box(black_box(&router).route(Some(name)));
        });
        // What scans every endpoint is called less often: about a million endpoints or alias entries a round.
        let few = (2_000_000 / size).clamp(5, 20_000);
        report(&mut first, "route_for_context(None, n), fallback", size, 11, || {
            let start = Instant::now();
            for _ in 0..few {
                let _ = black_box(black_box(&router).route_for_context(black_box(None), black_box(FALLBACK)));
            }
            start.elapsed().as_nanos() as f64 / few as f64
        });
        let lists = (200_000 / size).max(1);
        report(&mut first, "models_list(), per entry", size, 11, || {
            let start = Instant::now();
            for _ in 0..lists {
                let list = black_box(black_box(&router).models_list());
                assert_eq!(list.len(), size);
            }
            start.elapsed().as_nanos() as f64 / (lists * size) as f64
        });
        // As many models as a round can afford have three aliases; the others keep their one.
        let renewed = few.min(size);
        for (id, _, al) in &models[..renewed] {
            for a in al {
                router.registry_mut().add_alias(a.clone(), ModelId::new(id.clone()));
            }
        }
        let again = (few / renewed).max(1);
        report(&mut first, "unregister(), register(), three aliases", size, 11, || {
            let mut spent = 0u128;
            for _ in 0..again {
                // What Rust takes by value is made beforehand: Python passes references.
                let mut made: Vec<_> = models[..renewed]
                    .iter()
                    .map(|(id, ep, al)| {
                        (
                            ModelId::new(id.clone()),
                            ep.clone(),
                            al.clone(),
                            [0; 3].map(|_| ModelId::new(id.clone())),
                        )
                    })
                    .collect();
                let start = Instant::now();
                for (id, ep, al, targets) in made.drain(..) {
                    black_box(router.registry_mut().unregister(black_box(&id)));
                    router.registry_mut().register(ep);
                    for (a, t) in al.into_iter().zip(targets) {
                        router.registry_mut().add_alias(a, t);
                    }
                }
                spent += start.elapsed().as_nanos();
            }
            spent as f64 / (again * renewed) as f64
        });
    }
    println!("\n]");
}
