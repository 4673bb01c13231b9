//! Which instructions the kernels may use, decided once at run time.
//!
//! Invariant: an [`InstructionSet`] above portable exists only on a processor that has its instructions, so a function
//! that is handed one may call the matching kernel. All kernels of a task give identical bytes.

use std::sync::OnceLock;

/// An instruction set that this processor has. It can only be obtained from the functions here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionSet(IsaKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IsaKind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl InstructionSet {
    /// What every processor can run.
    pub const PORTABLE: InstructionSet = InstructionSet(IsaKind::Portable);

    /// The fastest that this processor has.
    pub fn best() -> InstructionSet {
        static BEST: OnceLock<InstructionSet> = OnceLock::new();
        *BEST.get_or_init(|| InstructionSet::supported().pop().unwrap_or(InstructionSet::PORTABLE))
    }

    /// All that this processor has, the fastest last. Tests and benchmarks go through them.
    pub fn supported() -> Vec<InstructionSet> {
        let kinds = [IsaKind::Portable].into_iter();
        #[cfg(target_arch = "x86_64")]
        let kinds = {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi");
            kinds.chain(avx2.then_some(IsaKind::Avx2)).chain(avx512.then_some(IsaKind::Avx512))
        };
        kinds.map(InstructionSet).collect()
    }

    /// "avx512", "avx2" or "portable".
    pub fn name(self) -> &'static str {
        match self.0 {
            IsaKind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => "avx512",
        }
    }

    pub(super) fn kind(self) -> IsaKind {
        self.0
    }
}

/// The instruction set that encoders and decoders use by default: "avx512", "avx2" or "portable".
pub fn default_isa_name() -> &'static str {
    InstructionSet::best().name()
}

/// Has `bytes`, which are wanted later, fetched as far as the second-level cache.
#[inline(always)]
pub(super) fn fetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: it changes nothing that a program sees, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Compiles one body for every instruction set and adds a leading `isa` argument that picks among them.
///
/// The bodies are plain loops that the compiler vectorises for the features at hand; only the Huffman coder and
/// unpacking need instructions that no compiler picks by itself.
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<const $c:ident: usize>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<const $c: usize>)? (isa: $crate::codec::dispatch::InstructionSet, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi2")]
            fn avx2 $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                body $(::<$c>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi2,avx512f,avx512bw,avx512vl,avx512vbmi")]
            fn avx512 $(<const $c: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                body $(::<$c>)? ($($arg),*)
            }

            match isa.kind() {
                $crate::codec::dispatch::IsaKind::Portable => body $(::<$c>)? ($($arg),*),
                // SAFETY: an `InstructionSet` of this kind exists only where the processor has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::codec::dispatch::IsaKind::Avx2 => unsafe { avx2 $(::<$c>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::codec::dispatch::IsaKind::Avx512 => unsafe { avx512 $(::<$c>)? ($($arg),*) },
            }
        }
    };
}
pub(super) use multiversion;
