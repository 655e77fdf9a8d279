//! Makes a feature known of `nn` that its sources ask for.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"cuda\"))");
    println!("cargo::rerun-if-changed=build.rs");
}
