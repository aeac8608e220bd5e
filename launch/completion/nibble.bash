# Completion of nibble(1) for bash, from version 4.4; installed as share/bash-completion/completions/nibble.
# Needs nothing of the bash-completion package.

_nibble_options() { # COMMAND: its options
    case $1 in
    train) echo --set --resume --device --help ;;
    check) echo --set --help ;;
    plan) echo --set --memory --card --gpus --length --help ;;
    eval) echo --model --adapter --data --generate --max-new-tokens --out --json --quant --compute --device \
        --tokenizer --chat-template --help ;;
    chat) echo --model --adapter --prompt --system --temperature --top-p --top-k --seed --max-new-tokens --context \
        --quant --compute --device --tokenizer --chat-template --help ;;
    export) echo --model --adapter --to --out --tokenizer --chat-template --device --help ;;
    score) echo --model --adapter --quant --compute --per-token --device --data --out --help ;;
    pack) echo --in --out --tokenizer --template --help ;;
    quantize) echo --model --out --help ;;
    bench) echo --model --random --fp8 --breakdown --batch --length --rank --tokens --seconds --op --compute --json --adapter \
        --prompt-tokens --new-tokens --quant --device --help ;;
    tokenize) echo --tokenizer --no-special --decode --skip-special --help ;;
    render) echo --template --model --messages --tools --generation-prompt --bos-token --eos-token --now --help ;;
    inspect) echo --help ;;
    doctor) echo --device --json --help ;;
    esac
}

_nibble_keys="model tokenizer output device quantization lora.r lora.lora_alpha lora.lora_dropout lora.target_modules
    lora.use_rslora lora.use_dora lora.trainable_token_indices lora.init_adapter data.train data.eval data.max_length data.over_long data.shuffle data.pack
    data.share_prefixes data.train_on data.chat_template train.epochs train.max_steps train.batch_size
    train.micro_batch_tokens train.slots train.learning_rate train.scheduler train.warmup_steps train.warmup_ratio
    train.optimizer train.weight_decay train.adam_beta1 train.adam_beta2 train.adam_epsilon train.max_grad_norm train.compute train.seed
    evaluate.every_steps evaluate.early_stopping_patience evaluate.generate checkpoint.every_steps checkpoint.keep
    parallel.shard_base parallel.shard_optimizer"

_nibble_values() { # KEY: the values that a configuration key can have, where they are few
    case $1 in
    device) echo auto cpu cuda emulated ;;
    quantization) echo nf4 none ;;
    data.over_long) echo error split drop truncate ;;
    data.train_on) echo assistant all ;;
    train.scheduler) echo cosine linear constant ;;
    train.optimizer) echo adamw adamw_8bit ;;
    train.compute) echo bf16 fp32 fp8 ;;
    lora.use_rslora | lora.use_dora | data.shuffle | data.pack | data.share_prefixes | parallel.shard_base | parallel.shard_optimizer) echo true false ;;
    esac
}

_nibble_words() { # WORDS CURRENT
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

_nibble_files() { # CURRENT PATTERN: folders, and files whose name matches the extended pattern
    local path
    compopt -o filenames 2>/dev/null
    COMPREPLY=()
    while IFS= read -r path; do
        # shellcheck disable=SC2053
        [[ -d $path || $path == $2 ]] && COMPREPLY+=("$path")
    done < <(compgen -f -- "$1")
}

_nibble_set() { # CURRENT: KEY= or, behind the equals sign, a value
    if [[ $1 == *=* ]]; then
        # Readline sees the equals sign as a border of words, so the answer is only what follows it.
        _nibble_words "$(_nibble_values "${1%%=*}")" "${1#*=}"
    else
        compopt -o nospace 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -S = -W "$_nibble_keys" -- "$1")
    fi
}

_nibble() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _nibble_words "train check plan eval chat export score pack quantize bench tokenize render inspect doctor --help --version" "$current"
        return
    fi
    # A word with an equals sign comes in up to three: KEY, =, VALUE.
    if [[ $current == = ]]; then
        _nibble_set "$previous="
        return
    elif [[ $previous == = ]]; then
        _nibble_set "${COMP_WORDS[COMP_CWORD - 2]}=$current"
        return
    fi
    case $previous in
    --set) _nibble_set "$current" ;;
    --device) _nibble_words "auto cpu cuda emulated" "$current" ;;
    --quant) _nibble_words "nf4 none" "$current" ;;
    --compute) _nibble_words "bf16 fp32" "$current" ;;
    --to) _nibble_words "adapter merged modelfile" "$current" ;;
    --model) _nibble_files "$current" "*.gguf" ;;
    --adapter) _nibble_files "$current" "" ;;
    --tokenizer) _nibble_files "$current" "*.@(json|gguf)" ;;
    --data | --in) _nibble_files "$current" "*.jsonl?(.zst)" ;;
    --messages | --tools) _nibble_files "$current" "*.json" ;;
    --template | --chat-template) _nibble_files "$current" "*.jinja" ;;
    --out) _nibble_files "$current" "*" ;;
    --memory | --gpus | --max-new-tokens | --prompt | --system | --temperature | --top-p | --top-k | --seed | --context | \
        --batch | --length | --rank | --tokens | --seconds | --prompt-tokens | --new-tokens | --op | --bos-token | --eos-token | --now) ;;
    *)
        if [[ $current == -* ]]; then
            _nibble_words "$(_nibble_options "$command")" "$current"
        elif ((COMP_CWORD == 2)) && [[ $command == bench ]]; then
            _nibble_words "step generate ops" "$current"
        elif [[ $command == @(train|check|plan) ]]; then
            _nibble_files "$current" "*.json"
        elif [[ $command == inspect ]]; then
            _nibble_files "$current" "*.@(safetensors|gguf)"
        elif [[ $command == @(eval|pack) ]]; then # --data and --in take several
            _nibble_files "$current" "*.jsonl?(.zst)"
        fi
        ;;
    esac
}

complete -F _nibble nibble

_nibble_launch() {
    local current=${COMP_WORDS[COMP_CWORD]} i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i += 2)); do # options have a value each; then comes a command
        [[ ${COMP_WORDS[i]} == -* ]] || break
    done
    if ((i < COMP_CWORD)); then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    elif ((i > COMP_CWORD)); then
        [[ ${COMP_WORDS[COMP_CWORD - 1]} != --logs ]] || mapfile -t COMPREPLY < <(compgen -d -- "$current")
    elif [[ $current == -* ]]; then
        _nibble_words "--nproc --nnodes --node-rank --master --logs --restarts --grace --help" "$current"
    else
        mapfile -t COMPREPLY < <(compgen -c -- "$current")
    fi
}

complete -F _nibble_launch nibble-launch
