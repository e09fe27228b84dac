// The figures of `requant perplexity --mtp`, computed by llama.cpp.
//
//     drafts MODEL TEXT CTX CHUNKS [DRAFT_MODEL]
//
// Each chunk passes the model; its prediction layer, or that of another file, gets the states of all tokens but the
// last with the tokens after them. Of the second half of each chunk: the mean negative log-likelihood of the token
// after next, and the share of drafts that the model itself would choose. Attention is not fused and keeps keys
// and values in f32, so that files in F32 give transformers' figures. What it is compiled with is that of the
// reference's tools: its folders include, common, src, ggml/include, and the libraries that llama-imatrix has.

#include "common.h"
#include "llama-ext.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

static llama_model * load(const char * path) {
    llama_model_params params = llama_model_default_params();
    params.load_mtp = true;
    llama_model * model = llama_model_load_from_file(path, params);
    if (!model) exit(1);
    return model;
}

static llama_context * context(llama_model * model, int ctx, llama_context_type type, llama_context * other) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = params.n_outputs_max_per_seq = ctx;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.ctx_type = type;
    params.ctx_other = other;
    llama_context * made = llama_init_from_model(model, params);
    if (!made) exit(1);
    return made;
}

static int best(const float * logits, int n) { return std::max_element(logits, logits + n) - logits; }

static double surprise(const float * logits, int n, int token) {
    const double most = logits[best(logits, n)];
    double sum = 0;
    for (int i = 0; i < n; i++) sum += std::exp(logits[i] - most);
    return std::log(sum) - (logits[token] - most);
}

static void report(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) fputs(text, stderr);
}

int main(int argc, char ** argv) {
    if (argc < 5) return 2;
    llama_log_set(report, nullptr);
    llama_backend_init();
    llama_model * model = load(argv[1]);
    llama_model * drafting = argc > 5 ? load(argv[5]) : model;
    const int ctx = atoi(argv[3]), chunks = atoi(argv[4]);
    llama_context * own = context(model, ctx, LLAMA_CONTEXT_TYPE_DEFAULT, nullptr);
    llama_context * draft = context(drafting, ctx, LLAMA_CONTEXT_TYPE_MTP, own);
    llama_set_embeddings_nextn(own, true, false);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab), width = llama_model_n_embd_out(model);
    const llama_token bos = llama_vocab_bos(vocab);
    std::stringstream text;
    text << std::ifstream(argv[2]).rdbuf();
    std::vector<llama_token> tokens = common_tokenize(vocab, text.str(), false, false);
    tokens.insert(tokens.begin(), bos);
    double nll = 0;
    int n = 0, accepted = 0;
    for (const llama_token * of = tokens.data(); of < tokens.data() + chunks * ctx; of += ctx) {
        llama_memory_clear(llama_get_memory(own), true);
        llama_memory_clear(llama_get_memory(draft), true);
        common_batch all(own), drafts(draft);
        for (int i = 0; i < ctx; i++) all.add(i ? of[i] : bos, i, 0, true);
        if (llama_process(own, LLAMA_PROCESS_TYPE_DECODE, all.get())) return 1;
        const float * states = llama_get_embeddings_nextn(own);
        for (int i = 0; i + 1 < ctx; i++) {
            drafts.set_embd(drafts.add(of[i + 1], i + 1, 0, true), { states + (size_t) i * width, 1, (size_t) width });
        }
        if (llama_process(draft, LLAMA_PROCESS_TYPE_DECODE, drafts.get())) return 1;
        for (int i = ctx / 2; i < ctx - 2; i++, n++) {
            const float * logits = llama_get_logits_ith(draft, i);
            nll += surprise(logits, n_vocab, of[i + 2]);
            accepted += best(logits, n_vocab) == best(llama_get_logits_ith(own, i + 1), n_vocab);
        }
    }
    printf("nll %.6f, accepted %.2f %% of %d\n", nll / n, 100.0 * accepted / n, n);
}
