/* For pages that have nothing else to do with their connection than to show it. */
watch(mease.connect());
