# `make demo` and `make test` each do all the set-up a fresh machine needs.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
C_SRC  := $(wildcard csrc/*.c csrc/*.h csrc/*.def)
C_TEXT := $(filter %.c %.h,$(C_SRC)) $(wildcard tests/csrc/*.[ch] tests/fuzz/*.[ch] bench/peers/*.c)
FUZZED := $(filter-out csrc/io% csrc/bench.c,$(wildcard csrc/*.c))

STRICT := -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
          -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla -Werror
ASAN   := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer \
          -O1 -fno-lto
ASAN_TESTS ?= $(wildcard $(addprefix tests/,test_captures.py test_hostile.py test_reasons.py test_engine.py \
              test_equivalence.py test_express.py test_lab.py test_fragments.py test_path.py test_services.py \
              test_offload.py test_nat.py))
FUZZ_SECONDS ?= 30
LIVE_TESTS := $(wildcard tests/test_live*.py) $(addprefix tests/peers/,test_kernel_vxlan.py test_openvswitch.py)

.PHONY: help demo test build lint format strict tidy asan fuzz bench compare bench-peers figures settings soak wheel clean system peers

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

demo: peers $(STAMP) ## two hosts and a kernel VXLAN peer exchange real traffic, in namespaces (as root)
	$(PY) -m dataplane demo

test: $(STAMP) ## all tests; what the machine lacks is skipped with its reason
	$(PY) -m pytest

# Of an interface with one queue one worker has AF_XDP's, the other sends through the sockets.
settings: $(STAMP) ## what `make test` has shown, once more without offloads, and with two workers
	DATAPLANE_WORKERS=2 $(PY) -m pytest -q tests/test_equivalence.py tests/test_captures.py & \
	  DATAPLANE_OFFLOAD=0 $(PY) -m pytest -q $(LIVE_TESTS); live=$$?; wait $$! && exit $$live
	DATAPLANE_WORKERS=2 $(PY) -m pytest -q -k "not xdp" $(LIVE_TESTS) tests/test_ports_live.py

build: $(STAMP) ## the engine, in place, in a virtual environment of its own (.venv)

# The first time, or when the packaging changed: install. Else only the engine is built again.
INSTALL = $(PY) -m pip install -q --disable-pip-version-check 'setuptools>=77' 'cffi>=2.0' && \
          $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
$(STAMP): pyproject.toml setup.py setup.cfg csrc/build.py $(C_SRC) | system
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(if $(filter-out csrc/%,$?),$(INSTALL),$(PY) setup.py -q build_ext --inplace)
	@touch $@

system:
	@.ci/system
peers:
	@.ci/system demo

lint: $(STAMP) strict ## formatting, linting, strict typing, C warnings as errors
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	clang-format --dry-run -Werror $(C_TEXT)

format: $(STAMP) ## format Python and C
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	clang-format -i $(C_TEXT)

strict: ## every C file of the engine under the full warning set
	@for f in $(wildcard csrc/*.c bench/peers/*.c); do $(CC) $(STRICT) -c $$f -o /dev/null || exit 1; done

tidy: ## clang-tidy (slow)
	clang-tidy --quiet $(wildcard csrc/*.c) -- -std=c11 -D_GNU_SOURCE

asan: $(STAMP) ## engine tests under address and undefined behaviour sanitizers
	rm -rf build/asan && mkdir -p build/asan
	cp -r dataplane csrc policies tests setup.py setup.cfg pyproject.toml *.md LICENSE build/asan/
	cd build/asan && rm -f dataplane/_engine*.so && \
	  DATAPLANE_CFLAGS="$(ASAN)" DATAPLANE_LDFLAGS="$(ASAN)" \
	  $(abspath $(PY)) setup.py -q build_ext --inplace
	cd build/asan && DATAPLANE_SANITIZED=1 \
	  DATAPLANE_CAPTURES="$${DATAPLANE_CAPTURES:-$(CURDIR)/../shared/captures}" \
	  LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(abspath $(PY)) -m pytest -p no:cacheprovider -q $(ASAN_TESTS)

fuzz: $(STAMP) ## libFuzzer on parser, engine and offloads, FUZZ_SECONDS each
	$(PY) -m tests.fuzz.seeds build/fuzz
	for target in parse engine offload; do \
	  clang -std=c11 -D_GNU_SOURCE -Wall -Werror -g -O1 -fsanitize=fuzzer,address,undefined \
	    -fno-sanitize-recover=undefined -Icsrc tests/fuzz/fuzz_$$target.c $(FUZZED) \
	    -o build/fuzz/fuzz_$$target && \
	  (cd build/fuzz && ./fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=5 \
	    -max_len=4096 -verbosity=0 -print_final_stats=1 corpus-$$target) || exit 1; \
	done

bench: $(STAMP) ## the engine's figures, table and pictures, into bench/results/ (QUICK=1: less of it)
	$(PY) -m bench.engine $(if $(QUICK),--quick)

compare: $(STAMP) ## the engine beside that of an earlier commit (BASE=HEAD~1), in turns; fails if it is slower
	$(PY) -m bench.compare $(or $(BASE),HEAD~1)

bench-peers: $(STAMP) ## beside the kernel, Open vSwitch and others, in namespaces (as root; QUICK=1: less of it)
	@.ci/system bench
	$(PY) -m bench.peers $(if $(QUICK),--quick)

figures: $(STAMP) ## the README's figures, from the last make bench and make bench-peers
	$(PY) -m bench.figures

soak: $(STAMP) ## ten minutes of mixed traffic, hostile frames and commits, in namespaces (as root)
	DATAPLANE_SOAK_SECONDS=600 $(PY) -m pytest -q -s tests/test_soak.py

wheel: $(STAMP) ## the abi3 wheel, into dist/
	rm -rf dist build/lib* build/bdist* && $(PY) -m pip wheel -q --disable-pip-version-check --no-deps -w dist .
	@ls dist/vxlan_dataplane-*-cp311-abi3-linux_*.whl

clean: ## remove what was built
	rm -rf build dist $(VENV) *.egg-info dataplane/_engine*.so
