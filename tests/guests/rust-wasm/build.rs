//! Export libc's own `free`; a function of that name in the guest would clash with it.

fn main() {
    if std::env::var_os("CARGO_FEATURE_LEAKY").is_none() {
        println!("cargo:rustc-cdylib-link-arg=--export=free");
    }
}
