#!/bin/sh
# Stands in for nvcc where CUDA code is compiled and no kernel of candle's is run: it answers questions and makes
# empty files and an empty library. What comes out is of no use, so it belongs into a target folder of its own.
case "$*" in
    *--version*)
        echo "nvcc: NVIDIA (R) Cuda compiler driver (a stand-in)"
        echo "Cuda compilation tools, release 13.0, V13.0.88"
        exit 0 ;;
    *--list-gpu-code*)
        printf '%s\n' sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120
        exit 0 ;;
esac
out_dir=. out= sources=
while [ $# -gt 0 ]; do
    case "$1" in
        -o | --output-file) out=$2; shift ;;
        --output-directory) out_dir=$2; shift ;;
        *.cu) sources="$sources $1" ;;
    esac
    shift
done
case "$out" in
    "")
        for source in $sources; do
            : >"$out_dir/$(basename "$source" .cu).ptx"
        done ;;
    *.a)
        printf '!<arch>\n' >"$out" ;;
    *)
        : >"$out" ;;
esac
