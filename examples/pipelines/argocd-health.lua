-- Argo CD's health of an OptimizationRun. In the ConfigMap argocd-cm, under
-- resource.customizations.health.tandem.dev_OptimizationRun
local health = { status = "Progressing", message = "waiting for the operator" }
if obj.status == nil or obj.status.conditions == nil then
  return health
end
local found = {}
for _, condition in ipairs(obj.status.conditions) do
  found[condition.type] = condition
end
local succeeded, progressing, suspended = found["Succeeded"], found["Progressing"], found["Suspended"]
if succeeded ~= nil and succeeded.status ~= "Unknown" then
  -- What was said of an earlier spec may have been mended.
  if succeeded.observedGeneration ~= nil and obj.metadata.generation ~= nil
      and succeeded.observedGeneration < obj.metadata.generation and succeeded.reason == "InvalidSpec" then
    return health
  end
  health.status = succeeded.status == "True" and "Healthy" or "Degraded"
  health.message = succeeded.reason .. ": " .. (succeeded.message or "")
elseif suspended ~= nil and suspended.status == "True" then
  health.status = "Suspended"
  health.message = suspended.message or ""
elseif progressing ~= nil then
  health.message = progressing.reason .. ": " .. (progressing.message or "")
end
return health
