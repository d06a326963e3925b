//! The engine and its settings.
//!
//! One pool of instances for the node: memories are copy-on-write views of the compiled file, a freed slot is reset by
//! asking the kernel which pages were touched. The sizes are address space, not memory, and cost nothing until used.

use std::sync::Arc;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::WasmConfig;
use super::clock::Clock;
use super::linkers::Linkers;

/// Touched bytes of a freed memory or table that stay and are zeroed by hand instead of by the kernel.
const KEEP_RESIDENT_BYTES: usize = 256 << 10;
/// Freed slots kept warm. Each may hold up to [`KEEP_RESIDENT_BYTES`] for ever, so this is what a burst leaves behind.
const WARM_SLOTS_MAX: u32 = 32;
/// Core instances per instance: a component is made of several modules (a Python one of about 75).
const CORE_INSTANCES_PER_INSTANCE: u32 = 20;
/// Tables per instance; most components have two or three.
const TABLES_PER_INSTANCE: u32 = 4;
/// Elements of a table.
const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Tables or memories of one module.
const PER_MODULE_MAX: u32 = 8;
/// Functions named in a backtrace.
const BACKTRACE_FRAMES_MAX: usize = 32;

/// The engine with what belongs to it.
pub(super) struct Parts {
    pub(super) engine: Engine,
    pub(super) clock: Arc<Clock>,
    pub(super) linkers: Linkers,
    pub(super) p3: bool,
}

/// Compiles with an engine of its own, because a compiler keeps its working memory, several times the size of the code,
/// for as long as its engine lives.
pub(super) fn compile(config: &WasmConfig, kind: Kind, wasm: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let engine = Engine::new(&settings(config))?;
    match kind {
        Kind::Module => engine.precompile_module(wasm),
        Kind::Component => engine.precompile_component(wasm),
    }
}

/// The two kinds of WebAssembly files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Module,
    Component,
}

impl Parts {
    pub(super) fn new(config: &WasmConfig) -> wasmtime::Result<Parts> {
        let engine = Engine::new(settings(config).allocation_strategy(pool(config)))?;
        let clock = Arc::new(Clock::start(&engine)?);
        let linkers = Linkers::new(&engine, config.p3)?;
        Ok(Parts { engine, clock, linkers, p3: config.p3 })
    }
}

/// What decides which compiled code fits.
fn settings(config: &WasmConfig) -> Config {
    let mut settings = Config::new();
    settings
        .epoch_interruption(true)
        .concurrency_support(config.p3)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    if config.p3 {
        settings.wasm_component_model_async(true);
    }
    settings
}

fn pool(config: &WasmConfig) -> InstanceAllocationStrategy {
    let instances = config.instances_max.max(1);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_PER_INSTANCE))
        .total_memories(instances.saturating_add(instances / 4).saturating_add(1))
        .total_tables(instances.saturating_mul(TABLES_PER_INSTANCE))
        .total_stacks(instances)
        .max_memories_per_module(PER_MODULE_MAX)
        .max_tables_per_module(PER_MODULE_MAX)
        .max_memory_size(config.instance_memory_bytes_max)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_unused_warm_slots(WARM_SLOTS_MAX)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    InstanceAllocationStrategy::Pooling(pool)
}
