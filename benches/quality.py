#!/usr/bin/env python3
"""What files of the same size lose: a model in each stock mix, rounded as the reference does (with importances), with
scales that are searched for more widely, compensated, in a measured mix of that size, and both, compared on text that
none of them has seen. Linux.

    benches/quality.py MODEL-BF16.gguf --calibrate valid.txt --test test.txt --dir WORK [--types Q2_K,Q3_K_M,...]

The first half of the calibration text chooses mixes, all of it gives importances and rounds; the way `calibrated` (not
among those that are made unless asked for) is `both` with a mix that is chosen by errors as they will be, from a third of
the text. WORK keeps what was
measured: a run that is stopped goes on with the next size, and further types are added to the same table, which is
printed as Markdown. In brackets, the divergence relative to the better of the reference's two files.
"""
import argparse, json, os, subprocess, sys, time

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("model"); ap.add_argument("--calibrate", required=True); ap.add_argument("--test", required=True)
ap.add_argument("--dir", required=True, help="folder for files and what was measured")
ap.add_argument("--types", default="IQ1_M,IQ2_XXS,IQ2_M,Q2_K,IQ3_XXS,IQ3_M,Q3_K_M,IQ4_XS,Q4_K_M,Q5_K_M,Q6_K")
ap.add_argument("--choose", default="K,IQ", help="types of the measured mixes")
ap.add_argument("--ways", default="plain,reference,search,compensated,mix,both")
ap.add_argument("--chunks", default="8", help="chunks of the test text")
ap.add_argument("--calibrate-chunks", default="16"); ap.add_argument("--search-chunks", default="8")
ap.add_argument("--activations", default="q8", help="f32 where files differ by less than rounded activations do"); ap.add_argument("--threads", default=str(os.cpu_count()))
ap.add_argument("--requant", default=os.path.join(os.path.dirname(__file__), "../target/release/requant"))
a = ap.parse_args()
os.makedirs(a.dir, exist_ok=True)
place = lambda name: os.path.join(a.dir, name)
imatrix, table = place("imatrix.gguf"), place("quality.json")
sensitivities = {"mix": place("sensitivities.json"), "calibrated": place("calibrated.json")}

def run(*command):
    """Seconds of processor time; what a failed command said is shown."""
    done = subprocess.Popen([a.requant, *command, "-j", a.threads, "-q"], stdout=subprocess.PIPE)
    out = done.stdout.read()
    _, status, usage = os.wait4(done.pid, 0)
    if status:
        sys.exit(f"failed: requant {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime, out

def search(known, *what):
    return run("mix", a.model, "--text", a.calibrate, "--chunks", a.search_chunks, "--imatrix", imatrix, "--types", a.choose,
               "--activations", a.activations, "--sensitivities", known, *what)[0]

known = json.load(open(table)) if os.path.exists(table) else {}
if not os.path.exists(imatrix):
    run("imatrix", a.model, "--text", a.calibrate, "--chunks", a.calibrate_chunks, "-o", imatrix)
MIX_OF = {"mix": "mix", "both": "mix", "calibrated": "calibrated"}

NAMES = {"plain": "reference, without importances", "reference": "reference", "search": "scales searched for",
         "compensated": "compensated", "mix": "measured mix, as the reference rounds", "both": "both",
         "calibrated": "both, the mix chosen with --calibrate"}
weighed = ["--imatrix", imatrix]
searched = [*weighed, "--rounding", "search"]
compensated = ["--calibrate", a.calibrate, "--calibrate-chunks", a.calibrate_chunks]
for mix in sorted({MIX_OF[way] for way in a.ways.split(",") if way in MIX_OF}):
    if not os.path.exists(sensitivities[mix]):
        known[f"search, {mix}"] = search(sensitivities[mix], "--curve", *(compensated if mix == "calibrated" else []))
for ty in a.types.split(","):
    rows = known.setdefault(ty, {})
    missing = [way for way in a.ways.split(",") if way not in rows]
    if ty.startswith(("IQ1", "IQ2", "IQ3_XXS", "Q2_K_S")) and "plain" in missing:
        missing.remove("plain")
    if not missing:
        continue
    size = int(json.loads(run("plan", a.model, "--type", ty, "--imatrix", imatrix, "--json")[1])["bytes"])
    for mix in sorted({MIX_OF[way] for way in missing if way in MIX_OF}):
        search(sensitivities[mix], "--size", str(size), "-o", place(f"{mix}.toml"), "-f", "--no-proof")
    made = {}
    for way in missing:
        of = place(f"{MIX_OF[way]}.toml") if way in MIX_OF else ty
        more = {"plain": [], "reference": weighed, "search": searched, "mix": weighed}.get(way, compensated)
        made[way] = run("quantize", a.model, place(f"{way}.gguf"), of, *more, "-f")[0]
    files = [place(f"{way}.gguf") for way in missing]
    found = json.loads(run("compare", a.model, *files, "--text", a.test, "--chunks", a.chunks, "--activations", a.activations,
                           "--json")[1])
    known["perplexity"] = found["reference_perplexity"]["perplexity"]
    for way, model in zip(missing, found["models"]):
        kld, paired = model["result"]["kl_divergence"], model["result"]["paired"]
        rows[way] = {
            "bytes": model["bytes"], "seconds": made[way], "kld": kld["mean"]["value"],
            "error": kld["mean_error_by_chunk"] or kld["mean"]["error"], "most": kld["percentiles"]["99.9"],
            "ratio": paired["ratio"], "ratio_error": paired["ratio_error"], "top": model["result"]["same_top"]["value"],
        }
    for file in files:
        os.remove(file)
    with open(table, "w") as out:
        json.dump(known, out, indent=1)
    print(f"{ty}: done at {time.strftime('%H:%M:%S')}", file=sys.stderr)

print("| size | rounding | bytes | KL divergence (error by chunk) | 99.9 % | perplexity over the original's | same top token "
      "| processor time |\n|---|---|---|---|---|---|---|---|")
number = lambda x: f"{x:.2g}" if x < 0.01 else f"{x:.4f}".lstrip("0") if x < 1 else f"{x:.3f}"
for ty in a.types.split(","):
    rows = known.get(ty, {})
    best = min([rows[way]["kld"] for way in ("plain", "reference") if way in rows], default=None)
    for way, name in NAMES.items():
        if way in rows:
            r = rows[way]
            ratio = f" ({r['kld'] / best:.2f})" if best and way not in ("plain", "reference") else ""
            print(f"| {ty} | {name} | {r['bytes']:,} | {number(r['kld'])} ± {number(r['error'])}{ratio} | {number(r['most'])} "
                  f"| {r['ratio']:.4f} ± {r['ratio_error']:.4f} | {100 * r['top']:.1f} % | {r['seconds']:.0f} s |")
