//! The `requant` program: see [`requant::cli`].

fn main() -> std::process::ExitCode {
    requant::cli::main()
}
