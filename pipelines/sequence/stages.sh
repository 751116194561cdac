# Functions of the scripts that run a sequence; sourced by them. A script first sets three arrays of options:
#   everywhere   of all commands: --run, --config, --shared, --backbone
#   reading      of commands that read data and load the model: `everywhere` with --data-root, --device
#   training     of `dmole train-task`: `reading` with --seed, --epochs, ...

five_stages() {
  # 1. Measure how sensitive each layer is to each task.                      profiles/<task>.parquet
  dmole profile "${reading[@]}"
  # 2. Choose the layers that get an expert, within the budget.               allocations/<task>.json
  dmole allocate "${everywhere[@]}"
  # 3. Train a small autoencoder that recognizes the task's inputs.           routers/<task>.safetensors
  dmole train-router "${reading[@]}"
  # 4. Train the new experts, and nothing else, task after task.              experts/<task>.safetensors
  dmole train-task "${training[@]}"
  # 5. Evaluate all tasks after every task.                                   evaluations/d-mole/<stage>/<task>.parquet
  dmole evaluate "${reading[@]}" --stage all
}

# Another method, at the same budget of parameters.
baseline() {
  if [ "$1" != zero-shot ]; then
    dmole train-task "${training[@]}" --method "$1"
  fi
  dmole evaluate "${reading[@]}" --stage all --method "$1"
}
