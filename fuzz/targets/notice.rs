#![no_main]

use std::cell::OnceCell;

thread_local! { static SANDBOX: OnceCell<ckptd_fuzz::Sandbox> = const { OnceCell::new() }; }

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    SANDBOX.with(|sandbox| ckptd_fuzz::notice(sandbox.get_or_init(Default::default), input));
});
