//! The command line; clap types only.

use std::path::PathBuf;

use clap::Parser;

const EXAMPLE: &str = "\
Example:
  gate-simulator --listen 127.0.0.1:9090 --integration integrations/shop.json integrations/news.json
  curl http://127.0.0.1:9090/profiles
  curl -X PUT http://127.0.0.1:9090/faults -d '{\"share\": 0.2, \"status\": 503, \"headers\": {\"Retry-After\": \"5\"}}'

While it runs:
  POST /restapi/api/{sync|async}/campaigns/triggerbyjson   the gate
  GET, DELETE /profiles     GET /profiles/{id}             ?integration=NAME
  GET, DELETE /requests                                    ?limit=N
  GET, PUT, DELETE /faults
  A rule of /faults: integration, identifier, share, times; latency_ms, status, is_success,
  error, body, headers, hang, reset, lose_answer, execute_after_ms.

Exit codes: 0 ended by SIGTERM or SIGINT, 1 cannot serve, 2 wrong arguments or documents.";

/// A strict stand-in for Selligent's campaign gate (REST v1)
#[derive(Parser)]
#[command(name = "gate-simulator", version, after_help = EXAMPLE)]
pub struct Cli {
    /// Where to listen; port 0 takes a free one, which the first line on stdout names
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub listen: String,

    /// Integration documents: credentials, gate, identifier and properties are taken from them, at its start
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub integration: Vec<PathBuf>,

    /// How many of the latest requests GET /requests can show
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub keep: usize,

    /// Where the generator starts that decides which requests a rule's share takes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound_and_files_can_be_given_either_way() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["gate-simulator", "--integration", "a.json", "b.json", "--integration", "c.json"])
                .unwrap();
        assert_eq!(cli.integration.len(), 3);
        assert_eq!(cli.listen, "127.0.0.1:9090");
        assert!(Cli::try_parse_from(["gate-simulator"]).is_err());
    }
}
