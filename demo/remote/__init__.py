"""Models of a running ``comp-export serve``, in place of engines of this process."""
