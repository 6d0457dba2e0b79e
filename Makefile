# `make demo` and `make test` each do all the set-up a fresh machine needs.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
C_SRC  := $(wildcard csrc/*.c csrc/*.h csrc/*.def)
STRICT := -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
          -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla -Werror
ASAN   := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -fno-lto
FUZZ_SECONDS ?= 30

.PHONY: help demo test lint format strict asan fuzz bench wheel clean peers

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

$(STAMP): setup.py pyproject.toml csrc/build.py $(C_SRC)
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

peers:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  ! { command -v ip && command -v ping && command -v nft; } >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    --no-install-recommends iproute2 iputils-ping nftables >/dev/null; fi

demo: peers $(STAMP) ## two hosts and a kernel VXLAN peer exchange real traffic (root: namespaces of its own)
	$(PY) -m dataplane demo

test: $(STAMP) ## all tests; what a machine lacks is skipped with its reason
	$(PY) -m pytest

lint: $(STAMP) strict ## formatting, linting, strict typing, C warnings as errors
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	clang-format --dry-run -Werror csrc/*.c csrc/*.h tests/fuzz/*.c

format: $(STAMP) ## format Python and C
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	clang-format -i csrc/*.c csrc/*.h tests/fuzz/*.c

strict: ## every C file under the full warning set
	@for f in csrc/*.c; do $(CC) $(STRICT) -fsyntax-only $$f || exit 1; done

asan: $(STAMP) ## the hostile tests against an engine built with address and undefined sanitizers
	rm -rf build/asan && mkdir -p build/asan
	cp -r dataplane csrc setup.py setup.cfg pyproject.toml README.md LICENSE build/asan/
	cd build/asan && rm -f dataplane/_engine*.so && DATAPLANE_CFLAGS="$(ASAN)" DATAPLANE_LDFLAGS="$(ASAN)" \
	  ../../$(PY) setup.py -q build_ext --inplace
	PYTHONPATH=build/asan LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 DATAPLANE_SANITIZED=1 \
	  $(PY) -P -m pytest -p no:cacheprovider -q tests/test_captures.py tests/test_hostile.py

fuzz: ## libFuzzer on the parser and on the whole engine, FUZZ_SECONDS each
	mkdir -p build/fuzz/corpus-parse build/fuzz/corpus-engine
	for t in parse engine; do \
	  clang -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	    -Icsrc tests/fuzz/fuzz_$$t.c $$(ls csrc/*.c | grep -v -e /io_ -e /bench) -o build/fuzz/fuzz_$$t && \
	  build/fuzz/fuzz_$$t -max_total_time=$(FUZZ_SECONDS) -timeout=5 -max_len=4096 -print_final_stats=0 \
	    -verbosity=0 build/fuzz/corpus-$$t || exit 1; done

bench: $(STAMP) ## benchmarks
	$(PY) -m dataplane bench

wheel: $(STAMP) ## the abi3 wheel, into dist/
	$(PY) -m pip wheel -q --no-deps -w dist .

clean: ## remove what was built
	rm -rf build dist $(VENV) *.egg-info dataplane/_engine*.so dataplane/_engine.c
